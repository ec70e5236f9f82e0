//! Memory for tensors that stay where the sessions compute.

use ort::{
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::Session,
};

use crate::{ChosenDevice, Runtime};

/// Where the tensors of the adapter live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residence {
    Host,
    Device,
}

/// Memory of a device, or of the host.
pub(crate) struct Memory {
    pub allocator: Allocator,
    pub residence: Residence,
    /// Device memory belongs to a session.
    pub _owner: Option<Session>,
}

impl Memory {
    /// Whether sessions compute elsewhere than on the host.
    pub fn is_elsewhere(&self) -> bool {
        self.residence == Residence::Device
    }

    pub fn of(runtime: &Runtime, device: ChosenDevice) -> ort::Result<Self> {
        let ChosenDevice::Cuda(number) = device else {
            return Ok(Self { allocator: Allocator::default(), residence: Residence::Host, _owner: None });
        };
        let (kind, memory) = (AllocatorType::Device, MemoryType::Default);
        let info = MemoryInfo::new(AllocationDevice::CUDA, number.cast_signed(), kind, memory)?;
        let owner = runtime.probe(number)?;
        let allocator = Allocator::new(&owner, info)?;
        Ok(Self { allocator, residence: Residence::Device, _owner: Some(owner) })
    }
}
