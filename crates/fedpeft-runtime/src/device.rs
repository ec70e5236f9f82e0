//! Devices: what is asked for, and what is taken.

use std::{fmt, str::FromStr};

use ort::{
    ep,
    session::{
        Session,
        builder::{AutoDevicePolicy, SessionBuilder},
    },
};

use crate::{Runtime, RuntimeError, error::one_line};

/// A device asked for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Device {
    /// A GPU where one can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(u32),
}

/// Text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {0:?} is not known: use auto, cpu, cuda or cuda:N")]
pub struct UnknownDevice(String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .filter(|number| number.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|number| number.parse().ok())
                .filter(|number| i32::try_from(*number).is_ok())
                .map(Self::Cuda)
                .ok_or_else(|| UnknownDevice(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
        }
    }
}

/// The device that sessions run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChosenDevice {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda(u32),
}

impl fmt::Display for ChosenDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cpu => Device::Cpu.fmt(formatter),
            Self::Cuda(number) => Device::Cuda(number).fmt(formatter),
        }
    }
}

impl Runtime {
    /// Settles which device sessions will run on, by opening a session on it.
    ///
    /// # Errors
    /// [`RuntimeError::Device`] where a GPU was asked for and cannot be used. `auto` falls back to the
    /// processor and says so in the log.
    pub fn choose(&self, device: Device) -> Result<ChosenDevice, RuntimeError> {
        match device {
            Device::Cpu => Ok(ChosenDevice::Cpu),
            Device::Cuda(number) => {
                let fail = |error: ort::Error| RuntimeError::Device { device, reason: one_line(error) };
                self.probe(number).map_err(fail)?;
                Ok(ChosenDevice::Cuda(number))
            }
            Device::Auto => match self.probe(0) {
                Ok(_) => Ok(ChosenDevice::Cuda(0)),
                Err(error) => {
                    tracing::warn!(reason = one_line(error), "no usable GPU, computing on the CPU");
                    Ok(ChosenDevice::Cpu)
                }
            },
        }
    }

    /// A session with one node that must run on the GPU: it fails where there is none.
    pub(crate) fn probe(&self, number: u32) -> ort::Result<Session> {
        let builder = Session::builder(&self.environment)?.with_disable_cpu_fallback()?;
        ChosenDevice::Cuda(number).add_to(builder, false)?.commit_from_memory(&probe_model())
    }
}

fn probe_model() -> Vec<u8> {
    use fedpeft_onnx::{DType, Dim, Graph, Model, Node, ValueInfo};
    let value = |name: &str| ValueInfo::new(name, DType::F32, vec![Dim::Fixed(1)]);
    let mut graph = Graph { name: "probe".to_owned(), ..Graph::default() };
    graph.inputs.push(value("x"));
    graph.outputs.push(value("y"));
    graph.nodes.push(Node::new("Exp", &["x"], &["y"]));
    Model::new(graph).to_bytes()
}

impl ChosenDevice {
    /// Adds the device's execution provider, which records the launches of a run where that is asked for; it is an error
    /// if the library has none.
    pub(crate) fn add_to(self, builder: SessionBuilder, recorded: bool) -> ort::Result<SessionBuilder> {
        let builder = match self {
            Self::Cpu => builder
                .with_auto_device(AutoDevicePolicy::PreferCPU)?
                .with_execution_providers([ep::CPU::default().with_arena_allocator(true).build()])?,
            Self::Cuda(number) => {
                // TF32 would round every product to 10 bits: gradients would differ from the CPU's by 1e-3.
                let cuda = ep::CUDA::default().with_device_id(number.cast_signed()).with_tf32(false);
                let cuda = cuda.with_cuda_graph(recorded);
                builder.with_execution_providers([cuda.build().error_on_failure()])?
            }
        };
        Ok(builder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_round_trip_and_others_are_refused() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:4294967295", "CPU"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
