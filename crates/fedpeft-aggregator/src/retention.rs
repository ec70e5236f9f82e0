//! Updates that do not fit a message lie in the object store of uploads, and a round of full fine-tuning leaves
//! gigabytes of them. They are forgotten once nothing will ever fold them again.
//!
//! An upload is named by run, round, client and digest. Rounds are committed once and for ever, so whoever knows that
//! a round is committed, or that a client's part in it is over, may forget its uploads, however late: nobody will ask
//! for them again. A round that is given up may be opened again; its uploads stay, and are found by the clients that
//! train the same again. What nobody asks for goes after the age limit of the bucket.

use std::collections::BTreeSet;

use fedpeft_bus::{BusError, UpdateDelivery, UploadKey};
use fedpeft_protocol::{
    ClientId, Digest, Round,
    round::{Payload, Update},
};

use futures::{StreamExt, stream::FuturesUnordered};

use crate::{
    drive::{Drive, IN_FLIGHT},
    round::RoundState,
};

/// Digests of what an update uploaded.
pub(crate) fn uploads_of(delivery: &UpdateDelivery) -> Vec<Digest> {
    let payloads = delivery.update.iter().flat_map(Update::payloads);
    let uploads = payloads.filter_map(|payload| match payload {
        Payload::Blob { digest, .. } => Some(*digest),
        Payload::Message { .. } => None,
    });
    uploads.collect()
}

/// Forgets what the members of a committed round uploaded, accepted or refused; those that go on training come later.
pub(crate) async fn forget_uploads(drive: &Drive<'_>, round: &RoundState) {
    let carried: BTreeSet<_> = drive.record.carried.iter().map(|carried| &carried.client).collect();
    let goes_on = |client: &ClientId| carried.contains(client);
    let gone = round.uploads.iter().filter(|(client, _)| !goes_on(client));
    let uploads = gone.flat_map(|(client, digests)| {
        let member = round.clients.member(client);
        digests.iter().filter_map(move |digest| Some((member.as_ref()?.round, client.clone(), *digest)))
    });
    forget_uploads_of(drive, uploads.collect()).await;
}

/// Forgets uploads, several at once.
pub(crate) async fn forget_uploads_of(drive: &Drive<'_>, uploads: Vec<(Round, ClientId, Digest)>) {
    let (mut uploads, mut forgetting) = (uploads.into_iter(), FuturesUnordered::new());
    loop {
        while forgetting.len() < IN_FLIGHT
            && let Some((round, client, digest)) = uploads.next()
        {
            forgetting.push(async move { forget_upload(drive, round, &client, &digest).await });
        }
        if forgetting.next().await.is_none() {
            return;
        }
    }
}

/// Forgets one upload. What cannot be forgotten costs space and nothing else.
pub(crate) async fn forget_upload(drive: &Drive<'_>, round: Round, client: &ClientId, digest: &Digest) {
    let run = &drive.record.run;
    let forgotten: Result<(), BusError> =
        drive.bus.purge_upload(UploadKey { run, round, client }, digest).await;
    if let Err(error) = forgotten {
        tracing::warn!(%run, round, %client, %error, "upload not deleted");
    }
}
