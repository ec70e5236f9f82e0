//! What the server sends.

use super::{Server, ServerError};
use crate::{
    members::Member,
    message::{Ask, Request, Stage, VERSION},
    sign::PublicKeys,
};

impl Server {
    /// What to send to `member` in the open stage; nothing if it is not asked, or the stage is the first, for
    /// which the parameters are all there is to say.
    ///
    /// # Errors
    /// [`ServerError::Incomplete`] while answers of a stage that was restored have not been taken again.
    pub fn request(&self, member: Member) -> Result<Option<Request<'static>>, ServerError> {
        self.complete()?;
        let Some(stage) = self.stage().filter(|stage| self.asked(*stage).contains(member)) else {
            return Ok(None);
        };
        let of = |before: Stage| self.set(before).clone();
        let ask = match stage {
            Stage::Advertise => return Ok(None),
            Stage::Share => Ask::Share {
                members: of(Stage::Advertise),
                keys: self
                    .neighbours(member, Stage::Advertise)
                    .filter_map(|other| self.members[other as usize].keys)
                    .flat_map(PublicKeys::to_bytes)
                    .collect(),
            },
            Stage::Mask => Ask::Mask { members: of(Stage::Share), sealed: self.sealed_for(member).into() },
            Stage::Confirm => Ask::Confirm { members: of(Stage::Mask) },
            Stage::Unmask => Ask::Unmask {
                members: of(Stage::Confirm),
                signatures: self
                    .neighbours(member, Stage::Confirm)
                    .filter_map(|other| self.members[other as usize].signature)
                    .flatten()
                    .collect(),
            },
        };
        Ok(Some(Request { version: VERSION, session: *self.session.id(), ask }))
    }

    /// Shares that were sent to `member` by those who take part, in their order.
    fn sealed_for(&self, member: Member) -> Vec<u8> {
        let sharers = self.set(Stage::Share);
        let inbox = &self.members[member as usize].inbox;
        let mut sealed: Vec<_> = inbox.iter().filter(|(from, _)| sharers.contains(*from)).collect();
        sealed.sort_unstable_by_key(|(from, _)| *from);
        sealed.iter().flat_map(|(_, sealed)| *sealed).collect()
    }
}
