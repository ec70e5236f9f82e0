//! What a client looks at before it answers.

use super::{Client, Progress, Refusal};
use crate::{
    members::{Member, Members},
    message::{Request, Stage, VERSION},
};

impl Client {
    pub(super) fn check(&self, request: &Request<'_>) -> Result<(), Refusal> {
        if request.session == *self.session.id() && request.version == VERSION {
            Ok(())
        } else {
            Err(Refusal::Session)
        }
    }

    /// The neighbours among `members`, who must be a safe number, have this member among them and nobody who was not
    /// there `before`.
    pub(super) fn neighbours(
        &self,
        members: &Members,
        before: Option<&Members>,
    ) -> Result<Vec<Member>, Refusal> {
        if !members.fits(self.session.size()) || !members.contains(self.me) {
            return Err(Refusal::LeftOut);
        }
        if let Some(before) = before.filter(|before| !members.within(before)) {
            return Err(Refusal::NotThere { client: self.first_outside(members, before) });
        }
        let (have, need) = (members.len(), self.session.quorum());
        if have < need {
            return Err(Refusal::Quorum { have, need });
        }
        let neighbours: Vec<_> = self.others(members).collect();
        self.enough_holders(neighbours.len() + 1)?;
        Ok(neighbours)
    }

    pub(super) fn others<'a>(&'a self, members: &'a Members) -> impl Iterator<Item = Member> + 'a {
        self.holders.iter().copied().filter(|holder| *holder != self.me && members.contains(*holder))
    }

    pub(super) fn enough_holders(&self, have: usize) -> Result<(), Refusal> {
        let need = self.session.threshold();
        if have < need { Err(Refusal::Holders { have, need }) } else { Ok(()) }
    }

    pub(super) fn first_outside(&self, members: &Members, before: &Members) -> String {
        let first = members.iter().find(|member| !before.contains(*member));
        first.map_or_else(String::new, |member| self.session.name(member))
    }

    pub(super) fn unexpected(&self, asked: Stage) -> Refusal {
        let expects = match self.progress {
            Progress::Advertised => Stage::Share,
            Progress::Shared { .. } => Stage::Mask,
            Progress::Masked { signed: None, .. } => Stage::Confirm,
            Progress::Masked { signed: Some(_), .. } => Stage::Unmask,
        };
        Refusal::Stage { asked, expects }
    }
}

/// `bytes` as `count` pieces of `SIZE` bytes.
pub(super) fn pieces<const SIZE: usize>(bytes: &[u8], count: usize) -> Result<&[[u8; SIZE]], Refusal> {
    match bytes.as_chunks::<SIZE>() {
        (pieces, []) if pieces.len() == count => Ok(pieces),
        _ => Err(Refusal::Length { got: bytes.len(), expected: count * SIZE }),
    }
}
