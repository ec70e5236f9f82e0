//! Every operation for every role: what is not allowed in the table is refused by the broker.

use crate::world::World;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Publish,
    Subscribe,
}
use Does::{Publish, Subscribe};

/// What, its subject, and who may; `a` is the client a, `site` the worker with clients c and d.
const TABLE: &[(&str, Does, &str, &[&str])] = &[
    // Clients speak for themselves.
    ("update of a", Publish, "fedpeft.v1.update.r.1.a", &["a"]),
    ("update of c", Publish, "fedpeft.v1.update.r.1.c", &["site"]),
    ("update of d", Publish, "fedpeft.v1.update.r.1.d", &["site"]),
    ("update of B", Publish, "fedpeft.v1.update.r.1.B", &[]),
    ("update of b, who is not B", Publish, "fedpeft.v1.update.r.1.b", &[]),
    ("update of nobody", Publish, "fedpeft.v1.update.r.1", &[]),
    ("presence of a", Publish, "fedpeft.v1.js.$KV.fedpeft-clients.a", &["a"]),
    ("presence of c", Publish, "fedpeft.v1.js.$KV.fedpeft-clients.c", &["site"]),
    ("presence of B", Publish, "fedpeft.v1.js.$KV.fedpeft-clients.B", &[]),
    ("presence, around the gate", Publish, "$KV.fedpeft-clients.a", &[]),
    ("upload chunk of a", Publish, "$O.fedpeft-uploads.C.a.x", &["a"]),
    ("upload metadata of a", Publish, "$O.fedpeft-uploads.M.a.x", &["a", "aggregator"]),
    ("upload chunk of B", Publish, "$O.fedpeft-uploads.C.B.x", &[]),
    ("upload metadata of B", Publish, "$O.fedpeft-uploads.M.B.x", &["aggregator"]),
    // Clients read their own tasks and what is public.
    (
        "task consumer of a",
        Publish,
        "fedpeft.v1.js.CONSUMER.CREATE.FEDPEFT_OPEN_TASKS.x.fedpeft.v1.task.a.*",
        &["a"],
    ),
    (
        "task consumer of a for B's tasks",
        Publish,
        "fedpeft.v1.js.CONSUMER.CREATE.FEDPEFT_OPEN_TASKS.x.fedpeft.v1.task.B.*",
        &[],
    ),
    ("task consumer for all tasks", Publish, "fedpeft.v1.js.CONSUMER.CREATE.FEDPEFT_OPEN_TASKS.x", &[]),
    ("task consumer without a name", Publish, "fedpeft.v1.js.CONSUMER.CREATE.FEDPEFT_OPEN_TASKS", &[]),
    ("task of a", Publish, "fedpeft.v1.js.DIRECT.GET.FEDPEFT_OPEN_TASKS.fedpeft.v1.task.a.r", &["a"]),
    ("task of B", Publish, "fedpeft.v1.js.DIRECT.GET.FEDPEFT_OPEN_TASKS.fedpeft.v1.task.B.r", &[]),
    ("task of whoever the body says", Publish, "fedpeft.v1.js.DIRECT.GET.FEDPEFT_OPEN_TASKS", &[]),
    ("acknowledging a task", Publish, "$JS.ACK.FEDPEFT_OPEN_TASKS.a.1.1.1.1.0", &[]),
    ("reading a task by number", Publish, "$JS.API.STREAM.MSG.GET.FEDPEFT_OPEN_TASKS", &["aggregator"]),
    (
        "reading a task by number, through the gate",
        Publish,
        "fedpeft.v1.js.STREAM.MSG.GET.FEDPEFT_OPEN_TASKS",
        &[],
    ),
    (
        "reading blobs",
        Publish,
        "fedpeft.v1.js.CONSUMER.CREATE.OBJ_fedpeft-blobs.x.$O.fedpeft-blobs.C.y",
        &["a", "site"],
    ),
    (
        "reading models",
        Publish,
        "fedpeft.v1.js.DIRECT.GET.KV_fedpeft-models.$KV.fedpeft-models.m.1",
        &["a", "site"],
    ),
    (
        "reading the own upload",
        Publish,
        "fedpeft.v1.js.CONSUMER.CREATE.OBJ_fedpeft-uploads.x.$O.fedpeft-uploads.C.a.y",
        &["a"],
    ),
    (
        "reading an upload of B",
        Publish,
        "fedpeft.v1.js.CONSUMER.CREATE.OBJ_fedpeft-uploads.x.$O.fedpeft-uploads.C.B.y",
        &[],
    ),
    ("reading all uploads", Publish, "fedpeft.v1.js.CONSUMER.CREATE.OBJ_fedpeft-uploads.x", &[]),
    ("reading updates, as a client", Publish, "fedpeft.v1.js.CONSUMER.CREATE.FEDPEFT_UPDATES.x.>", &[]),
    (
        "reading the own updates",
        Publish,
        "fedpeft.v1.js.CONSUMER.CREATE.FEDPEFT_UPDATES.x.fedpeft.v1.update.r.1.a",
        &["a"],
    ),
    (
        "reading updates of B",
        Publish,
        "fedpeft.v1.js.CONSUMER.CREATE.FEDPEFT_UPDATES.x.fedpeft.v1.update.r.1.B",
        &[],
    ),
    (
        "reading runs, as a client",
        Publish,
        "fedpeft.v1.js.DIRECT.GET.KV_fedpeft-runs.$KV.fedpeft-runs.r",
        &[],
    ),
    (
        "reading presence, as a client",
        Publish,
        "fedpeft.v1.js.DIRECT.GET.KV_fedpeft-clients.$KV.fedpeft-clients.B",
        &[],
    ),
    // Services, each its own.
    ("task", Publish, "fedpeft.v1.task.a.r", &["aggregator"]),
    ("hint", Publish, "fedpeft.v1.hint.a.r", &[]),
    ("event", Publish, "fedpeft.v1.event.r.status", &["aggregator"]),
    ("run record", Publish, "$KV.fedpeft-runs.r", &["aggregator"]),
    ("lease", Publish, "$KV.fedpeft-leases.r", &["aggregator"]),
    ("model", Publish, "$KV.fedpeft-models.m.1", &["registry"]),
    ("blob chunk", Publish, "$O.fedpeft-blobs.C.x", &["aggregator", "admin"]),
    ("blob metadata", Publish, "$O.fedpeft-blobs.M.x", &["aggregator", "admin"]),
    ("creating a run", Publish, "fedpeft.v1.api.runs.create", &["admin"]),
    ("cancelling a run", Publish, "fedpeft.v1.api.runs.cancel", &["admin"]),
    ("publishing a model", Publish, "fedpeft.v1.api.models.publish", &["admin"]),
    ("looking for services", Publish, "$SRV.PING", &["admin"]),
    (
        "reading tasks",
        Publish,
        "$JS.API.CONSUMER.CREATE.FEDPEFT_OPEN_TASKS.x.fedpeft.v1.task.*.r",
        &["aggregator"],
    ),
    (
        "reading updates",
        Publish,
        "$JS.API.CONSUMER.CREATE.FEDPEFT_UPDATES.x.fedpeft.v1.update.r.*.*",
        &["aggregator"],
    ),
    (
        "reading events",
        Publish,
        "$JS.API.CONSUMER.CREATE.FEDPEFT_EVENTS.x.fedpeft.v1.event.>",
        &["aggregator", "exporter", "admin"],
    ),
    (
        "reading runs",
        Publish,
        "$JS.API.DIRECT.GET.KV_fedpeft-runs.$KV.fedpeft-runs.r",
        &["aggregator", "admin"],
    ),
    (
        "reading presence",
        Publish,
        "$JS.API.CONSUMER.CREATE.KV_fedpeft-clients.x.$KV.fedpeft-clients.>",
        &["aggregator", "admin"],
    ),
    // Streams.
    (
        "making a stream of ours",
        Publish,
        "$JS.API.STREAM.CREATE.FEDPEFT_OPEN_TASKS",
        &["aggregator", "registry", "admin"],
    ),
    ("making another stream", Publish, "$JS.API.STREAM.CREATE.OTHER", &[]),
    ("making a stream, through the gate", Publish, "fedpeft.v1.js.STREAM.CREATE.FEDPEFT_OPEN_TASKS", &[]),
    ("changing a stream", Publish, "$JS.API.STREAM.UPDATE.FEDPEFT_UPDATES", &[]),
    ("deleting updates", Publish, "$JS.API.STREAM.DELETE.FEDPEFT_UPDATES", &[]),
    ("deleting updates, through the gate", Publish, "fedpeft.v1.js.STREAM.DELETE.FEDPEFT_UPDATES", &[]),
    ("deleting runs", Publish, "$JS.API.STREAM.DELETE.KV_fedpeft-runs", &[]),
    ("purging updates", Publish, "$JS.API.STREAM.PURGE.FEDPEFT_UPDATES", &["aggregator"]),
    ("purging updates, through the gate", Publish, "fedpeft.v1.js.STREAM.PURGE.FEDPEFT_UPDATES", &[]),
    ("purging uploads, through the gate", Publish, "fedpeft.v1.js.STREAM.PURGE.OBJ_fedpeft-uploads", &[]),
    ("purging runs", Publish, "$JS.API.STREAM.PURGE.KV_fedpeft-runs", &[]),
    ("purging events", Publish, "$JS.API.STREAM.PURGE.FEDPEFT_EVENTS", &[]),
    (
        "deleting a consumer of tasks",
        Publish,
        "$JS.API.CONSUMER.DELETE.FEDPEFT_OPEN_TASKS.a",
        &["aggregator"],
    ),
    (
        "deleting a consumer, through the gate",
        Publish,
        "fedpeft.v1.js.CONSUMER.DELETE.FEDPEFT_UPDATES.a",
        &[],
    ),
    ("changing accounts", Publish, "$SYS.REQ.CLAIMS.UPDATE", &[]),
    // Listening.
    ("everything", Subscribe, ">", &[]),
    ("all updates", Subscribe, "fedpeft.v1.update.>", &[]),
    ("own updates", Subscribe, "fedpeft.v1.update.*.*.a", &[]),
    ("all tasks", Subscribe, "fedpeft.v1.task.>", &[]),
    ("hints of a", Subscribe, "fedpeft.v1.hint.a.*", &["a"]),
    ("hints of c", Subscribe, "fedpeft.v1.hint.c.*", &["site"]),
    ("hints of B", Subscribe, "fedpeft.v1.hint.B.*", &[]),
    ("all hints", Subscribe, "fedpeft.v1.hint.*.*", &[]),
    ("all events", Subscribe, "fedpeft.v1.event.>", &[]),
    ("run requests", Subscribe, "fedpeft.v1.api.runs.create", &["aggregator"]),
    ("model requests", Subscribe, "fedpeft.v1.api.models.publish", &["registry"]),
    ("replies to everybody", Subscribe, "_INBOX.>", &[]),
    ("replies to all", Subscribe, "*.>", &[]),
    ("replies to a", Subscribe, "_INBOX_a.>", &["a"]),
    ("replies to the admin", Subscribe, "_INBOX_admin.>", &["admin"]),
    ("replies to the aggregator", Subscribe, "_INBOX_aggregator.>", &["aggregator"]),
    ("the server's own", Subscribe, "$SYS.>", &[]),
];

#[tokio::test]
async fn each_role_may_do_its_own_and_nothing_else() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    for name in ["a", "site", "aggregator", "registry", "exporter", "admin"] {
        let person = world.person(name).await;
        for (what, does, subject, allowed) in TABLE {
            let may = match does {
                Publish => person.may_publish(subject).await,
                Subscribe => person.may_subscribe(subject).await,
            };
            if may != allowed.contains(&name) {
                wrong.push(format!("{name}: {what} is {}", if may { "allowed" } else { "refused" }));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of the table is wrong:\n{}", wrong.len(), wrong.join("\n"));
}
