//! Sentence embeddings (Reimers & Gurevych 2019, arXiv:1908.10084): mean pooling over the tokens of an encoder, then L2
//! normalisation.

use std::cmp::Reverse;
use std::path::Path;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use tokenizers::TruncationParams;

use super::bert::Encoder;
use super::tokenizer::optional_json;
use super::{Batch, LmError, LoadOptions, Placement, guard};

/// Tokens computed together: on a GPU enough to keep it busy, on a CPU few enough for its caches.
const TOKENS_ON_GPU: usize = 65_536;
const TOKENS_ON_CPU: usize = 4096;

/// A sentence encoder with its tokenizer.
pub struct Embedder {
    tokenizer: tokenizers::Tokenizer,
    encoder: Encoder,
}

impl Embedder {
    /// Loads a folder with `config.json`, `model.safetensors` and `tokenizer.json`.
    ///
    /// # Errors
    /// One [`LmError`] that names the file and the cause.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self, LmError> {
        let placement = Placement::resolve(options.device, options.dtype)?;
        let encoder = Encoder::load(folder, placement)?;
        Ok(Self {
            tokenizer: load_tokenizer(folder, encoder.positions())?,
            encoder,
        })
    }

    pub fn placement(&self) -> Placement {
        self.encoder.placement()
    }

    /// The unit vector of each text, in order. Texts longer than the encoder reads are cut at its limit.
    ///
    /// Texts of about one length are computed together, whatever their order, and never with padding: what stands
    /// beside a text moves its vector by no more than rounding. `on_batch` hears now and then how many are done.
    ///
    /// # Errors
    /// [`LmError::Prompt`] where the tokenizer refuses a text, [`LmError::Torch`], and what `on_batch` returns.
    pub fn embed<S: AsRef<str> + Sync, E: From<LmError>>(
        &self,
        texts: &[S],
        on_batch: &mut dyn FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<Vec<f32>>, E> {
        let sequences = self.tokenize(texts)?;
        // Longest first: what does not fit into memory shows at once.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&at| Reverse(sequences[at].len()));
        let most = match self.placement().is_cpu() {
            true => TOKENS_ON_CPU,
            false => TOKENS_ON_GPU,
        };
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut done = 0;
        let mut rest = &order[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fitting = rest.iter().take_while(|&&at| {
                let fits = tokens == 0 || tokens + sequences[at].len() <= most;
                tokens += sequences[at].len();
                fits
            });
            let (part, behind) = rest.split_at(fitting.count());
            rest = behind;
            let batch: Vec<&[i64]> = part.iter().map(|&at| &sequences[at][..]).collect();
            for (&at, vector) in part.iter().zip(self.embed_batch(&batch)?) {
                vectors[at] = vector;
            }
            done += part.len();
            on_batch(done)?;
        }
        Ok(vectors)
    }

    /// The token ids of each text, special ones included.
    ///
    /// # Errors
    /// [`LmError::Prompt`] where the tokenizer refuses a text.
    pub fn tokenize<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<i64>>, LmError> {
        let tokenizer = &self.tokenizer;
        let encode = |text: &S| {
            let encoding = tokenizer
                .encode_fast(text.as_ref(), true)
                .map_err(|error| {
                    LmError::Prompt(format!("the encoder's tokenizer refuses it: {error}"))
                })?;
            Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
        };
        texts.par_iter().map(encode).collect()
    }

    fn embed_batch(&self, sequences: &[&[i64]]) -> Result<Vec<Vec<f32>>, LmError> {
        guard(|| {
            tch::no_grad(|| {
                let batch = Batch::pack(sequences, self.placement().device);
                let hidden = self.encoder.forward(&batch)?;
                let vectors = pool(&hidden, &batch.cu_seqlens)?;
                Ok(Vec::try_from(vectors.f_to_device(Device::Cpu)?)?)
            })
        })
    }
}

/// The mean of each sequence's rows of `hidden` [T, hidden], scaled to length 1: f32 [B, hidden].
fn pool(hidden: &Tensor, cu_seqlens: &[i64]) -> Result<Tensor, LmError> {
    let lengths: Vec<i64> = cu_seqlens.windows(2).map(|b| b[1] - b[0]).collect();
    let lengths = Tensor::from_slice(&lengths).f_to_device(hidden.device())?;
    let hidden = hidden.f_to_kind(Kind::Float)?;
    // The length scales out in the norm, so sums do for means.
    let sums = Tensor::f_segment_reduce(&hidden, "sum", Some(&lengths), None, None, 0, true, 0.0)?;
    let norm = sums
        .f_square()?
        .f_sum_dim_intlist(1, true, Kind::Float)?
        .f_sqrt()?
        .f_clamp_min(1e-12)?;
    Ok(sums.f_div(&norm)?)
}

/// The tokenizer, set to cut texts at the length the encoder was trained for, at most `positions` tokens.
fn load_tokenizer(folder: &Path, positions: i64) -> Result<tokenizers::Tokenizer, LmError> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        return Err(LmError::missing(folder, "tokenizer.json"));
    }
    let refused = |error: tokenizers::Error| LmError::Tokenizer {
        path: path.clone(),
        reason: error.to_string(),
    };
    let bytes = std::fs::read(&path).map_err(|error| LmError::read(&path, error))?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(refused)?;
    let trained = &optional_json(&folder.join("sentence_bert_config.json"))?["max_seq_length"];
    let max_length = trained
        .as_i64()
        .map_or(positions, |length| length.clamp(2, positions));
    let truncation = TruncationParams {
        max_length: max_length as usize,
        ..TruncationParams::default()
    };
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(Some(truncation))
        .map_err(refused)?;
    Ok(tokenizer)
}
