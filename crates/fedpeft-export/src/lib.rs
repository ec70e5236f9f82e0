//! What a federation trained, for those who use it: an artifact folder and the values of its adapter become
//!
//! | file | content |
//! | --- | --- |
//! | `model.onnx` | a plain inference model (inputs) -> logits of standard operators, with what was learnt merged into it |
//! | `model.onnx.data` | its weights, where they are too large for one file |
//! | `adapter.safetensors` | the adapter, and what its LoRA factors do not hold, with the method in its metadata |
//! | `peft/` | LoRA, DoRA or IA3 as a folder that HF `peft` loads, and the head beside it |

mod adapter;
mod error;
mod onnx;
mod peft;
mod tidy;
mod widen;
mod write;

pub use adapter::{Trained, adapter_safetensors, read_adapter, read_trained};
pub use error::ExportError;
pub use onnx::{Inference, inference};
pub use peft::{PeftFolder, peft_folder};
pub use write::{Exported, ExportedFile, Format, Formats, INLINE_LIMIT, Step, export};
