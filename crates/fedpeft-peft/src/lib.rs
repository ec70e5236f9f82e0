//! Parameter-efficient fine-tuning methods as graph surgery.
//!
//! A [`Peft`] decides which tensors are trained, the adapter: some of a backbone's own, or new ones that
//! [`apply`] puts into its graph. Places are found by [`Structure`], never by an exporter's names. Every method
//! also trains the classification head that [`head`] attaches, as in Sun et al., arXiv 2210.01708.

pub mod head;
mod init;
pub mod merge;
mod method;
mod select;
mod structure;
mod surgery;

pub use head::{HEAD_BIAS, HEAD_WEIGHT, Pooling};
pub use method::{
    Activation, Bottleneck, Ia3, InvalidMethod, Lora, Method, Peft, Placement, Prefix, Prompt, PromptInit,
};
pub(crate) use select::select;
pub use structure::{Attention, Block, Linear, Mlp, Projection, Residual, Structure, Target, TargetError};
pub use surgery::{DROPOUT_SEED, PeftError, apply};
