//! Roles, and what each may do: the whole of it, for what is not allowed here is refused.
//!
//! Every role reads its replies under an inbox prefix of its own, so that nobody reads another's.

use std::{fmt, str::FromStr};

use fedpeft_protocol::subject::{
    API, BLOB_BUCKET, CLIENT_API, CLIENT_BUCKET, EVENT_STREAM, EVENT_SUBJECTS, FORMER_TASK_STREAM,
    HINT_SUBJECTS, LEASE_BUCKET, MODEL_BUCKET, PREFIX, RUN_BUCKET, TASK_STREAM, TASK_SUBJECTS, UPDATE_STREAM,
    UPLOAD_BUCKET,
};
use serde::{Deserialize, Serialize};

use crate::claims::{Allow, Export, Import, Permissions, Responses, Template, UNLIMITED};

/// What credentials are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A worker: it speaks for the clients that its credentials name, and for no others.
    Client,
    /// `fedpeft-aggregator`.
    Aggregator,
    /// `fedpeft-registry`.
    Registry,
    /// `fedpeft-exporter`.
    Exporter,
    /// A person with the command line.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Client, Self::Aggregator, Self::Registry, Self::Exporter, Self::Admin];
    /// Those of whom there is one by default.
    pub const SINGLE: [Self; 4] = [Self::Aggregator, Self::Registry, Self::Exporter, Self::Admin];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Aggregator => "aggregator",
            Self::Registry => "registry",
            Self::Exporter => "exporter",
            Self::Admin => "admin",
        }
    }

    /// What everybody of this role may do.
    pub(crate) fn template(self) -> Template {
        let (publish, mut subscribe, answers) = match self {
            Self::Client => (client(), vec![format!("{PREFIX}.hint.{{{{tag(client)}}}}.*")], false),
            Self::Aggregator => (aggregator(), vec![format!("{API}.runs.>"), "$SRV.>".into()], true),
            Self::Registry => (registry(), vec![format!("{API}.models.>"), "$SRV.>".into()], true),
            Self::Exporter => (exporter(), vec![], false),
            Self::Admin => (admin(), vec![], false),
        };
        subscribe.push("_INBOX_{{name()}}.>".into());
        Template {
            permissions: Permissions {
                publish: Allow { allow: publish },
                subscribe: Allow { allow: subscribe },
                responses: answers.then_some(Responses { max: 1, ttl: REPLY_WITHIN }),
            },
            subs: UNLIMITED,
            data: UNLIMITED,
            payload: UNLIMITED,
            allowed_connection_types: vec!["STANDARD"],
        }
    }
}

/// Nanoseconds a service may take to answer: a little more than anybody waits.
const REPLY_WITHIN: u64 = 60_000_000_000;

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| format!("roles are {}", known()))
    }
}

/// Streams behind buckets.
fn kv(bucket: &str) -> String {
    format!("KV_{bucket}")
}

fn objects(bucket: &str) -> String {
    format!("OBJ_{bucket}")
}

/// Every stream of FedPEFT.
fn streams() -> Vec<String> {
    let plain = [TASK_STREAM, UPDATE_STREAM, EVENT_STREAM].map(str::to_owned);
    let records = [MODEL_BUCKET, RUN_BUCKET, LEASE_BUCKET, CLIENT_BUCKET].map(kv);
    plain.into_iter().chain(records).chain([objects(BLOB_BUCKET), objects(UPLOAD_BUCKET)]).collect()
}

/// Subjects that make and look up the streams. None of them deletes or changes one.
fn topology() -> Vec<String> {
    let each =
        |stream: String| [format!("$JS.API.STREAM.INFO.{stream}"), format!("$JS.API.STREAM.CREATE.{stream}")];
    let former = format!("$JS.API.STREAM.INFO.{FORMER_TASK_STREAM}");
    ["$JS.API.INFO".to_owned(), former].into_iter().chain(streams().into_iter().flat_map(each)).collect()
}

/// Subjects that read a stream through short-lived consumers and by subject, under an API prefix.
fn reads(api: &str, stream: &str) -> Vec<String> {
    vec![
        format!("{api}.STREAM.INFO.{stream}"),
        format!("{api}.CONSUMER.CREATE.{stream}.>"),
        format!("{api}.CONSUMER.MSG.NEXT.{stream}.*"),
        format!("{api}.CONSUMER.DELETE.{stream}.*"),
        format!("{api}.CONSUMER.INFO.{stream}.*"),
        format!("{api}.DIRECT.GET.{stream}"),
        format!("{api}.DIRECT.GET.{stream}.>"),
        format!("{api}.STREAM.MSG.GET.{stream}"),
    ]
}

fn read_all(api: &str, streams: impl IntoIterator<Item = String>) -> Vec<String> {
    streams.into_iter().flat_map(|stream| reads(api, &stream)).collect()
}

fn aggregator() -> Vec<String> {
    let read = [TASK_STREAM, UPDATE_STREAM, EVENT_STREAM].map(str::to_owned).into_iter();
    let read = read.chain([RUN_BUCKET, LEASE_BUCKET, CLIENT_BUCKET, MODEL_BUCKET].map(kv));
    let read = read.chain([BLOB_BUCKET, UPLOAD_BUCKET].map(objects));
    let purge =
        [TASK_STREAM.to_owned(), UPDATE_STREAM.to_owned(), objects(BLOB_BUCKET), objects(UPLOAD_BUCKET)];
    let own = [
        TASK_SUBJECTS.to_owned(),
        EVENT_SUBJECTS.to_owned(),
        format!("$KV.{RUN_BUCKET}.>"),
        format!("$KV.{LEASE_BUCKET}.>"),
        format!("$O.{BLOB_BUCKET}.>"),
        // To delete what a round no longer needs.
        format!("$O.{UPLOAD_BUCKET}.M.>"),
    ];
    let purge = purge.map(|stream| format!("$JS.API.STREAM.PURGE.{stream}"));
    topology().into_iter().chain(read_all("$JS.API", read)).chain(purge).chain(own).collect()
}

fn registry() -> Vec<String> {
    let read = [kv(MODEL_BUCKET), objects(BLOB_BUCKET)];
    topology().into_iter().chain(read_all("$JS.API", read)).chain([format!("$KV.{MODEL_BUCKET}.>")]).collect()
}

fn exporter() -> Vec<String> {
    reads("$JS.API", EVENT_STREAM)
}

fn admin() -> Vec<String> {
    let read =
        [EVENT_STREAM.to_owned(), kv(RUN_BUCKET), kv(MODEL_BUCKET), kv(CLIENT_BUCKET), objects(BLOB_BUCKET)];
    let own = [
        format!("{API}.>"),
        "$SRV.>".to_owned(),
        format!("$O.{BLOB_BUCKET}.>"),
        // To take back the chunks of a broken upload.
        format!("$JS.API.STREAM.PURGE.{}", objects(BLOB_BUCKET)),
        "$JS.API.STREAM.NAMES".to_owned(),
        "$JS.API.STREAM.LIST".to_owned(),
    ];
    topology().into_iter().chain(read_all("$JS.API", read)).chain(own).collect()
}

/// A client sees the broker through [`CLIENT_API`]: see [`gates`].
fn client() -> Vec<String> {
    let (me, uploads) = ("{{tag(client)}}", objects(UPLOAD_BUCKET));
    let own = [
        format!("{PREFIX}.update.*.*.{me}"),
        format!("{CLIENT_API}.$KV.{CLIENT_BUCKET}.{me}"),
        format!("$O.{UPLOAD_BUCKET}.C.{me}.>"),
        format!("$O.{UPLOAD_BUCKET}.M.{me}.>"),
        format!("{CLIENT_API}.DIRECT.GET.{TASK_STREAM}.{PREFIX}.task.{me}.*"),
        format!("{CLIENT_API}.CONSUMER.CREATE.{TASK_STREAM}.*.{PREFIX}.task.{me}.*"),
        format!("{CLIENT_API}.CONSUMER.MSG.NEXT.{TASK_STREAM}.*"),
        // To tell what an earlier process has answered.
        format!("{CLIENT_API}.CONSUMER.CREATE.{UPDATE_STREAM}.*.{PREFIX}.update.*.*.{me}"),
        format!("{CLIENT_API}.CONSUMER.MSG.NEXT.{UPDATE_STREAM}.*"),
        // To go on with an upload: what of it is stored.
        format!("{CLIENT_API}.DIRECT.GET.{uploads}.$O.{UPLOAD_BUCKET}.*.{me}.>"),
        format!("{CLIENT_API}.CONSUMER.CREATE.{uploads}.*.$O.{UPLOAD_BUCKET}.*.{me}.>"),
        format!("{CLIENT_API}.CONSUMER.MSG.NEXT.{uploads}.*"),
    ];
    let looked_up = [TASK_STREAM.to_owned(), kv(CLIENT_BUCKET), objects(UPLOAD_BUCKET)];
    let looked_up = looked_up.map(|stream| format!("{CLIENT_API}.STREAM.INFO.{stream}"));
    let public = read_all(CLIENT_API, [kv(MODEL_BUCKET), objects(BLOB_BUCKET)]);
    let public = public.into_iter().filter(|subject| !subject.contains(".STREAM.MSG.GET."));
    own.into_iter().chain(looked_up).chain(public).collect()
}

/// The only ways between the account of the clients and that of the services. NATS guards what a client
/// publishes, not where it wants the reply: within one account, a client could have the broker's reply to a
/// request of its own delivered to any subject, another client's update or a run's record among them. Across
/// accounts a reply reaches subjects of the client's own account alone.
fn gates() -> Vec<(String, String, &'static str)> {
    let uploads = objects(UPLOAD_BUCKET);
    let same = |subject: String| (subject.clone(), subject, "Singleton");
    let api = |rest: String, replies| (format!("$JS.API.{rest}"), format!("{CLIENT_API}.{rest}"), replies);
    let mut gates = vec![
        same(format!("{PREFIX}.update.*.*.*")),
        same(format!("$O.{UPLOAD_BUCKET}.C.*.>")),
        same(format!("$O.{UPLOAD_BUCKET}.M.*.>")),
        (format!("$KV.{CLIENT_BUCKET}.*"), format!("{CLIENT_API}.$KV.{CLIENT_BUCKET}.*"), "Singleton"),
        api(format!("DIRECT.GET.{TASK_STREAM}.{PREFIX}.task.*.*"), "Singleton"),
        api(format!("CONSUMER.CREATE.{TASK_STREAM}.*.{PREFIX}.task.*.*"), "Singleton"),
        api(format!("CONSUMER.MSG.NEXT.{TASK_STREAM}.*"), "Stream"),
        api(format!("CONSUMER.CREATE.{UPDATE_STREAM}.*.{PREFIX}.update.*.*.*"), "Singleton"),
        api(format!("CONSUMER.MSG.NEXT.{UPDATE_STREAM}.*"), "Stream"),
        api(format!("DIRECT.GET.{uploads}.$O.{UPLOAD_BUCKET}.*.*.>"), "Stream"),
        api(format!("CONSUMER.CREATE.{uploads}.*.$O.{UPLOAD_BUCKET}.*.*.>"), "Singleton"),
        api(format!("CONSUMER.MSG.NEXT.{uploads}.*"), "Stream"),
    ];
    for stream in [TASK_STREAM.to_owned(), kv(CLIENT_BUCKET), objects(UPLOAD_BUCKET)] {
        gates.push(api(format!("STREAM.INFO.{stream}"), "Singleton"));
    }
    for stream in [kv(MODEL_BUCKET), objects(BLOB_BUCKET)] {
        for subject in reads("", &stream) {
            let rest = subject.trim_start_matches('.').to_owned();
            let many = rest.starts_with("CONSUMER.MSG.NEXT") || rest.starts_with("DIRECT.GET");
            if !rest.starts_with("STREAM.MSG.GET") {
                gates.push(api(rest, if many { "Stream" } else { "Singleton" }));
            }
        }
    }
    gates
}

/// The gates as the account of the services opens them, and the hints, which go the other way.
pub(crate) fn exports() -> Vec<Export> {
    let export =
        |subject: String, kind, response_type| Export { name: subject.clone(), subject, kind, response_type };
    let hints = export(HINT_SUBJECTS.to_owned(), "stream", None);
    let gates = gates().into_iter().map(|(subject, _, replies)| export(subject, "service", Some(replies)));
    gates.chain([hints]).collect()
}

/// The gates as the account of the clients sees them; `account` is the key of the services' account.
pub(crate) fn imports(account: &str) -> Vec<Import> {
    let import = |(subject, local, _): (String, String, &'static str)| Import {
        name: local.clone(),
        local_subject: Some(numbered(&local)),
        subject,
        account: account.to_owned(),
        kind: "service",
    };
    let hints = Import {
        name: HINT_SUBJECTS.to_owned(),
        subject: HINT_SUBJECTS.to_owned(),
        account: account.to_owned(),
        local_subject: None,
        kind: "stream",
    };
    gates().into_iter().map(import).chain([hints]).collect()
}

/// Wildcards of a local subject refer by number to those of the subject they stand for.
fn numbered(subject: &str) -> String {
    let mut count = 0;
    let number = |token| {
        if token == "*" {
            count += 1;
            format!("${count}")
        } else {
            String::from(token)
        }
    };
    subject.split('.').map(number).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_may_do_everything_or_delete_a_stream() {
        for role in Role::ALL {
            let permissions = role.template().permissions;
            for subject in permissions.publish.allow.iter().chain(&permissions.subscribe.allow) {
                assert!(subject != ">" && !subject.starts_with("*"), "{role}: {subject}");
                for verb in ["STREAM.DELETE", "STREAM.UPDATE", "STREAM.RESTORE", "STREAM.MSG.DELETE", "$SYS"]
                {
                    assert!(!subject.contains(verb), "{role}: {subject}");
                }
            }
            assert_eq!(role.name().parse::<Role>(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().contains("aggregator"));
    }

    #[test]
    fn what_a_client_writes_carries_its_name() {
        let writes = client().into_iter().filter(|subject| {
            let read = subject.starts_with(CLIENT_API) && !subject.contains("$KV");
            !read
        });
        for subject in writes {
            assert!(subject.contains("{{tag(client)}}"), "{subject}");
        }
    }

    #[test]
    fn local_wildcards_are_numbered() {
        assert_eq!(numbered("a.*.b.*.>"), "a.$1.b.$2.>");
    }
}
