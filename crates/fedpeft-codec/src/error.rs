//! What can be wrong with an adapter, or with its bytes.

/// Values that cannot be encoded, or bytes that are not an adapter of the expected layout and pipeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The byte count is not four per value.
    #[error("adapter has {got} bytes, its layout of {values} f32 values needs {expected}")]
    Size {
        /// Bytes found.
        got: usize,
        /// Bytes needed.
        expected: usize,
        /// Values in the layout.
        values: usize,
    },
    /// A value is NaN or infinite.
    #[error("adapter value {index} of tensor {tensor} is {value}: only finite values are accepted")]
    NotFinite {
        /// Tensor the value belongs to.
        tensor: String,
        /// Index within that tensor, row-major.
        index: usize,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
    /// A value is too large for the way in which it should be stored.
    #[error(
        "adapter value {index} of tensor {tensor} is {value}, beyond the range of {stage}: use bf16 or fp32"
    )]
    Range {
        /// Tensor the value belongs to.
        tensor: String,
        /// Index within that tensor, row-major.
        index: usize,
        /// The value.
        value: String,
        /// How it should be stored.
        stage: &'static str,
    },
    /// The bytes do not begin with a header.
    #[error("adapter has no codec header: {0}")]
    Header(&'static str),
    /// The header is of another version.
    #[error("adapter has codec version {0}, this program reads {version}: upgrade the older side", version = crate::header::VERSION)]
    Version(u8),
    /// The adapter is of another layout.
    #[error("adapter has {got} values, its layout has {expected}")]
    Values {
        /// Values that the header declares.
        got: u64,
        /// Values in the layout.
        expected: u64,
    },
    /// It was encoded by another pipeline than the run's.
    #[error("adapter is encoded as {got}, the run asks for {expected}")]
    Pipeline {
        /// What the header declares.
        got: String,
        /// What was expected.
        expected: String,
    },
    /// Changes without the adapter that they change.
    #[error("adapter is encoded as changes, and there is no adapter that they could change")]
    NoBase,
    /// Changes to another adapter.
    #[error("adapter is encoded as changes to another adapter than the one it began with")]
    Base,
    /// The bytes after the header are not what it declares.
    #[error("encoded adapter is damaged: {0}")]
    Body(&'static str),
    /// The machine cannot hold it.
    #[error("no memory for {0} bytes of an adapter")]
    Memory(usize),
    /// The compressor failed.
    #[error("zstd cannot compress the adapter: {0}")]
    Compress(String),
}
