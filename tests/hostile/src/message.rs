//! Messages of the wire protocol.

use fedpeft_protocol::{
    api::{CreateRun, Empty, ModelList, PublishModel, RunList, RunRequest},
    event::Event,
    ledger,
    model::ModelVersion,
    presence::Presence,
    round::{RoundReport, Task, Update, Work},
    run::{ModelRef, RunRecord, RunSpec, RunView},
    subject,
    wire::Format,
};
use serde::{Serialize, de::DeserializeOwned};

/// Decodes every message there is, in both encodings, and checks what was decoded as its receivers do.
pub fn message(bytes: &[u8]) {
    for format in [Format::MessagePack, Format::Json] {
        if let Some(task) = decode::<Task>(format, bytes)
            && let Work::Train { training, stability, .. } = &task.work
        {
            let _ = training.validate();
            let _ = stability.as_ref().map(|stability| stability.validate());
        }
        decode::<Update>(format, bytes);
        decode::<Event>(format, bytes);
        decode::<RoundReport>(format, bytes);
        if let Some(request) = decode::<CreateRun>(format, bytes) {
            spec(&request.spec);
        }
        if let Some(record) = decode::<RunRecord>(format, bytes) {
            spec(&record.spec);
        }
        if let Some(view) = decode::<RunView>(format, bytes) {
            let _ = ledger::check(&view);
        }
        if let Some(presence) = decode::<Presence>(format, bytes) {
            let _ = fedpeft_protocol::run::Eligibility::default().check(&presence);
        }
        decode::<RunList>(format, bytes);
        decode::<RunRequest>(format, bytes);
        decode::<ModelRef>(format, bytes);
        decode::<PublishModel>(format, bytes);
        decode::<ModelVersion>(format, bytes);
        decode::<ModelList>(format, bytes);
        decode::<Empty>(format, bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Some((run, round, client)) = subject::parse_update(text) {
            // `+7` and `007` are round 7 as well; what is parsed names one update all the same.
            let parsed = subject::parse_update(&subject::update(&run, round, &client));
            assert_eq!(parsed, Some((run, round, client)));
        }
        let _ = Format::from_content_type(Some(text));
    }
    let _ = Format::sniff(None, bytes);
}

/// What is decoded can be sent on, and is then the same.
fn decode<T: Serialize + DeserializeOwned>(format: Format, bytes: &[u8]) -> Option<T> {
    let message = format.decode::<T>(bytes).ok()?;
    // JSON has no numbers that are not finite: they are written as null.
    let Ok(written) = Format::MessagePack.encode(&message) else {
        panic!("a decoded message is not encoded")
    };
    match Format::MessagePack.decode::<T>(&written) {
        Ok(again) => assert_eq!(Format::MessagePack.encode(&again).ok(), Some(written)),
        Err(error) => panic!("a message that was decoded is not decoded again: {error}"),
    }
    Some(message)
}

fn spec(spec: &RunSpec) {
    if spec.validate().is_ok() {
        let _ = (spec.quorum(), spec.sampled(), spec.min_clients());
    }
}
