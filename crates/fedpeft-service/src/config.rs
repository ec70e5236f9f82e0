//! Configuration: command line over environment over file over defaults.
//!
//! Arguments are a clap struct in which everything is optional; the configuration is a struct of the same
//! field names with serde defaults. clap merges flags and environment and documents both in `--help`;
//! what it leaves open comes from the TOML file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, ValueEnum, ValueHint};
use fedpeft_bus::{BusConfig, Tls};
use figment::{
    Figment, Provider,
    providers::{Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Arguments of every service; flatten them into the service's own with `#[command(flatten)]` and
/// `#[serde(flatten)]`.
#[derive(Debug, Clone, Default, clap::Args, Serialize)]
#[command(next_help_heading = "Service options")]
pub struct CommonArgs {
    /// TOML file with any of these options, spelt with underscores; flags and environment win over it
    #[arg(long, env = "FEDPEFT_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// NATS server with JetStream, nats:// or tls://; several may be joined by commas [default: nats://127.0.0.1:4222]
    #[arg(long, env = "FEDPEFT_SERVER", hide_env_values = true, value_name = "URL", value_hint = ValueHint::Url)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// NATS credentials file (.creds)
    #[arg(long, env = "FEDPEFT_CREDS", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// Authorities to believe, PEM; those of the system without it. Any --tls option makes TLS a must
    #[arg(long, env = "FEDPEFT_TLS_CA", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// Our certificate, PEM, for a server that verifies its clients; needs --tls-key
    #[arg(long, env = "FEDPEFT_TLS_CERT", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, PEM
    #[arg(long, env = "FEDPEFT_TLS_KEY", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Encrypt before the server's greeting: for a server with `handshake_first` [default: false]
    #[arg(long, env = "FEDPEFT_TLS_FIRST", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_first: Option<bool>,
    /// What to log: error, warn, info, debug, trace, or per module, as in `info,fedpeft_bus=debug` [default: info]
    #[arg(long, env = "FEDPEFT_LOG", value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Form of the log on standard error [default: text]
    #[arg(long, env = "FEDPEFT_LOG_FORMAT", value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// Send traces by OTLP (http/protobuf) to this collector, as http://127.0.0.1:4318 [default: what the OTEL_* variables of
    /// OpenTelemetry say, else nowhere]
    #[arg(long, env = "FEDPEFT_OTLP_ENDPOINT", value_name = "URL", value_hint = ValueHint::Url)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Serve /healthz, /readyz and /metrics over HTTP on this address
    #[arg(long, env = "FEDPEFT_HTTP", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
}

/// The options of every service, settled; flatten them into the service's own with `#[serde(flatten)]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Common {
    /// Address of the NATS server.
    pub server: String,
    /// Credentials file.
    pub creds: Option<PathBuf>,
    /// Authorities to believe.
    pub tls_ca: Option<PathBuf>,
    /// Our certificate.
    pub tls_cert: Option<PathBuf>,
    /// Its private key.
    pub tls_key: Option<PathBuf>,
    /// Encrypt before the server's greeting.
    pub tls_first: bool,
    /// What to log.
    pub log: String,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Base URL of a trace collector.
    pub otlp_endpoint: Option<String>,
    /// Address of the HTTP endpoints.
    pub http: Option<SocketAddr>,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            server: "nats://127.0.0.1:4222".into(),
            creds: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            tls_first: false,
            log: "info".into(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            http: None,
        }
    }
}

impl Common {
    /// How the program called `name` reaches the NATS server.
    pub fn bus(&self, name: &str) -> BusConfig {
        let (ca, cert, key) = (self.tls_ca.clone(), self.tls_cert.clone(), self.tls_key.clone());
        let tls = Tls { ca, cert, key, first: self.tls_first };
        BusConfig { server: self.server.clone(), creds: self.creds.clone(), tls, name: name.to_owned() }
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The file has an option the program does not know.
    #[error("configuration file {}: there is no option {option:?}; options are {known}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The option.
        option: String,
        /// Those there are.
        known: String,
    },
    /// A value cannot be.
    #[error("configuration: {0}")]
    Value(String),
}

/// Merges `args` over `file` over the defaults of `C`.
pub fn load<A, C>(args: &A, file: Option<&Path>) -> Result<C, ConfigError>
where
    A: CommandFactory + Serialize,
    C: DeserializeOwned,
{
    let mut figment = Figment::new();
    if let Some(path) = file {
        let source = |source| ConfigError::Read { path: path.into(), source };
        let text = std::fs::read_to_string(path).map_err(source)?;
        let toml = Toml::string(&text);
        refuse_unknown::<A>(path, &toml)?;
        figment = figment.merge(toml);
    }
    figment.merge(Serialized::defaults(args)).extract().map_err(|error| value_error(file, &error))
}

/// A misspelt option would otherwise be ignored, and its default used without a word.
fn refuse_unknown<A: CommandFactory>(path: &Path, toml: &impl Provider) -> Result<(), ConfigError> {
    let given = toml.data().map_err(|error| value_error(Some(path), &error))?;
    let command = A::command();
    let known: Vec<&str> = command
        .get_arguments()
        .map(|argument| argument.get_id().as_str())
        .filter(|id| *id != "config")
        .collect();
    for option in given.values().flat_map(|options| options.keys()) {
        if !known.contains(&option.as_str()) {
            let (path, option) = (path.into(), option.clone());
            return Err(ConfigError::Unknown { path, option, known: known.join(", ") });
        }
    }
    Ok(())
}

fn value_error(file: Option<&Path>, error: &figment::Error) -> ConfigError {
    let mut text = String::new();
    if let Some(path) = file {
        text = format!("{}: ", path.display());
    }
    if !error.path.is_empty() {
        text += &format!("{}: ", error.path.join("."));
    }
    text += &error.kind.to_string();
    ConfigError::Value(text.lines().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Serialize)]
    struct Args {
        #[command(flatten)]
        #[serde(flatten)]
        common: CommonArgs,
        #[arg(long)]
        #[serde(skip_serializing_if = "Option::is_none")]
        slots: Option<u32>,
    }

    #[derive(Deserialize, Debug)]
    struct Config {
        #[serde(flatten)]
        common: Common,
        #[serde(default = "seven")]
        slots: u32,
    }

    fn seven() -> u32 {
        7
    }

    fn load_with(arguments: &[&str], toml: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let args = Args::parse_from([&["program"], arguments].concat());
        load(&args, Some(file.path()))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let toml = "server = \"nats://file\"\nslots = 3\nlog_format = \"json\"\nhttp = \"127.0.0.1:1\"";
        let config = load_with(&["--server", "nats://flag"], toml).unwrap();
        assert_eq!(config.common.server, "nats://flag");
        assert_eq!((config.slots, config.common.log_format), (3, LogFormat::Json));
        assert_eq!(config.common.http.unwrap().port(), 1);
        let toml = "tls_ca = \"ca.pem\"\ntls_first = true";
        let tls =
            load_with(&["--tls-cert", "c.pem", "--tls-key", "k.pem"], toml).unwrap().common.bus("x").tls;
        let pem = |name: &str| Some(PathBuf::from(name));
        assert_eq!(tls, Tls { ca: pem("ca.pem"), cert: pem("c.pem"), key: pem("k.pem"), first: true });
        assert!(!load_with(&["--tls-first", "false"], toml).unwrap().common.tls_first);
        let config = load_with(&[], "").unwrap();
        assert_eq!((config.slots, config.common.log.as_str()), (7, "info"));
    }

    #[test]
    fn mistakes_in_the_file_are_one_line() {
        for (toml, expected) in [
            ("slosts = 3", "there is no option \"slosts\""),
            ("slots = \"x\"", "slots"),
            ("slots = ", ""),
            ("http = \"nowhere\"", ""),
        ] {
            let error = load_with(&[], toml).unwrap_err().to_string();
            assert!(error.contains(expected) && error.lines().count() == 1, "{toml}: {error}");
        }
        let args = Args::parse_from(["program"]);
        let error = load::<_, Config>(&args, Some(Path::new("/does/not/exist"))).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }));
    }
}
