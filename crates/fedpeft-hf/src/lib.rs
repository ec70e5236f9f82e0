//! Hugging Face model folders as ONNX graphs.
//!
//! [`import`] reads `config.json` and `model.safetensors` of an encoder of the BERT family (BERT, RoBERTa,
//! XLM-RoBERTa, DistilBERT) and writes the network as a [`fedpeft_onnx::Model`] of standard operators, in the
//! form that FedPEFT's passes make of an export: linear layers as one `Gemm` on rows, `LayerNormalization` and
//! `Gelu` whole, only the batch dynamic. Initializers keep the names and layouts (`[out, in]`) that the
//! parameters have in `transformers`, so that an adapter trained here fits the model there.

mod config;
mod encoder;
mod error;
mod import;
mod weights;

pub use config::{Activation, Config, Family};
pub use error::HfError;
pub use import::{
    ATTENTION_MASK, CONFIG_FILE, Encoder, INPUT_IDS, OUTPUT, TOKEN_TYPE_IDS, WEIGHTS_FILE, import,
};
