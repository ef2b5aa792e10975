//! The training step on a GPU: loss and gradient of a micro-batch, forward and backward written out by hand.
//!
//! The formulas are those of `backward.rs`, `decoder.rs` and `lora.rs`, in another arrangement. Each linear layer's weight
//! lies in one matrix with the adapter's B, [W | B], and its input in one with x · Aᵀ, so that a single GEMM computes the
//! layer with its update, and in the backward pass a single one gives the gradients of both. What lies between the GEMMs
//! is fused into few kernels. Dropout's mask is made anew wherever it is needed, from a seed. Where the frozen weights are
//! multiplied in e4m3 (see `rounded.rs`), the updates are products of their own.

use tch::{Kind, Tensor};

use super::engine_layer::Saved;
use super::engine_linear::{DOWN, GATE_UP, Operand, PLAIN_FORWARD};
use super::lora::{Lora, LoraShape, Mask, fits};
use super::lora_grad::GradientArena;
use super::{
    CrossEntropy, Dequantise, Fit, Gemm, HeadRotation, Heads, Norm, Part, Profile, RoundedWeight,
    Rounding, Sequences, Swiglu, SwigluGrad,
};
use crate::lm::{Adapter, Decoder, LmError, RotaryTable, seeds};

/// What computes the gradient of an adapter of one decoder.
pub struct TrainEngine {
    /// Per layer: qkv, o, gate_up, down.
    pub(super) layers: Vec<[EngineLinear; 4]>,
    pub(super) norm: Norm,
    pub(super) rotation: HeadRotation,
    pub(super) heads: Heads,
    pub(super) swiglu: Swiglu,
    /// Where its backward pass makes gradients of factors too.
    pub(super) swiglu_grad: Option<SwigluGrad>,
    pub(super) arena: GradientArena,
    /// Where frozen weights are multiplied in e4m3.
    pub(super) rounding: Option<Rounding>,
    pub(super) gemm: Gemm,
    cross_entropy: CrossEntropy,
    dequantise: Dequantise,
    /// Room for one decoded weight, where weights stay packed.
    decoded: Option<Tensor>,
    dropout: f64,
    deterministic: bool,
    profile: Option<Profile>,
}

/// One fused linear layer.
pub(super) struct EngineLinear {
    pub(super) lora: Lora,
    frozen: Frozen,
}

/// The weight of a linear layer, as it is multiplied.
enum Frozen {
    /// bf16 [out, in + low]: the weight and B.
    Wide(Tensor),
    /// Decoded into that at each use.
    Packed,
    Rounded(RoundedWeight),
}

impl EngineLinear {
    pub(super) fn rounded(&self) -> Option<&RoundedWeight> {
        match &self.frozen {
            Frozen::Rounded(weight) => Some(weight),
            _ => None,
        }
    }
}

/// How an engine computes.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Only kernels whose results have the same bits every time.
    pub deterministic: bool,
    /// Multiplies the frozen weights in e4m3.
    pub fp8: bool,
    /// Bytes of memory that there are for weights and passes.
    pub budget: u64,
}

/// The tokens of a micro-batch.
pub struct EngineBatch<'a> {
    /// i64 [T].
    pub ids: &'a Tensor,
    pub rotary: RotaryTable,
    /// The boundaries of the sequences, from 0 to T.
    pub boundaries: &'a [i64],
    /// i64 [N]: the tokens whose successor is trained, and the successors.
    pub rows: &'a Tensor,
    pub targets: &'a Tensor,
}

/// One pass over the layers.
pub(super) struct Pass<'a> {
    pub(super) decoder: &'a Decoder,
    /// f32, flat.
    pub(super) parameters: Tensor,
    pub(super) sequences: Sequences,
    pub(super) rotary: &'a RotaryTable,
    /// Draws dropout; None without.
    pub(super) seed: Option<u64>,
    /// A backward pass follows.
    pub(super) gradient: bool,
}

/// A layer between its forward and its backward pass.
enum Segment {
    Kept(Box<Saved>),
    /// Its input, from which it is computed again.
    Input(Tensor),
}

/// Why the engine cannot compute this model and adapter (`fp8`: with e4m3 products); None where it can.
pub fn unsuitable(decoder: &Decoder, adapter: &Adapter, fp8: bool) -> Option<String> {
    let placement = decoder.placement();
    if placement.kind != Kind::BFloat16 {
        return Some(format!("it computes in bf16, not in {:?}", placement.kind));
    }
    if adapter.config().dora {
        return Some("it has no DoRA".to_owned());
    }
    if decoder.head_weight().size()[0] % 8 != 0 {
        return Some("the vocabulary is not a multiple of 8".to_owned());
    }
    for (index, layer) in decoder.layers().iter().enumerate() {
        for (linear, shape) in layer
            .linears()
            .into_iter()
            .zip(shapes(decoder, adapter, index))
        {
            let (inner, out) = (shape.in_features, shape.out_features);
            if !fits(&shape) || out % 8 != 0 || !linear.decodes_in_a_kernel() {
                let r = shape.r;
                return Some(format!(
                    "a layer of {inner} × {out} with rank {r} does not fit its tiles"
                ));
            }
            if fp8 && let Some(reason) = RoundedWeight::unsuitable(&shape) {
                return Some(reason);
            }
        }
    }
    None
}

/// Rounded weights may take half of the memory: they are there for each direction, and nothing else stands in for them.
fn check_room(layers: &[Vec<LoraShape>], budget: u64) -> Result<(), LmError> {
    let shapes = layers.iter().flat_map(|shapes| shapes.iter().enumerate());
    let bytes: u64 = shapes
        .map(|(place, shape)| RoundedWeight::bytes(shape, PLAIN_FORWARD.contains(&place)))
        .sum();
    if bytes <= budget / 2 {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Err(LmError::Fp8(format!(
        "the frozen weights take {:.1} GiB (once for each direction), and {:.1} GiB are there for weights and passes",
        gib(bytes),
        gib(budget)
    )))
}

fn shapes(decoder: &Decoder, adapter: &Adapter, layer: usize) -> Vec<LoraShape> {
    let linears = decoder.layers()[layer].linears().into_iter();
    linears
        .zip(adapter.lora_parts(layer))
        .map(|(linear, parts)| LoraShape {
            in_features: linear.in_features(),
            out_features: linear.out_features(),
            r: adapter.config().r,
            parts,
            scale: adapter.config().scale(),
        })
        .collect()
}

impl TrainEngine {
    /// For a decoder and adapter that are not [`unsuitable`]. Dense weights move into the wider matrices that they share
    /// with B; packed ones stay packed where the budget is short, and are decoded at each use.
    ///
    /// # Errors
    /// [`LmError::Kernel`], [`LmError::Fp8`] where memory is too short for the rounded weights, or out of memory.
    pub fn new(
        decoder: &mut Decoder,
        adapter: &Adapter,
        options: EngineOptions,
    ) -> Result<Self, LmError> {
        let device = decoder.placement().device;
        let first = decoder.layers().first();
        let first = first.ok_or_else(|| LmError::Training("the model has no layers".to_owned()))?;
        let heads = Heads {
            query: first.heads,
            key_value: first.kv_heads,
            dim: first.head_dim,
        };
        let rotation = HeadRotation::new(heads, first.qk_norm.is_some(), device)?;
        let norm = Norm::new(first.input_norm.weight.size()[0], device)?;
        let all_shapes: Vec<Vec<LoraShape>> = (0..decoder.layers().len())
            .map(|layer| shapes(decoder, adapter, layer))
            .collect();
        let gradients = adapter.parameters().gradients();
        let arena = GradientArena::new(all_shapes.iter().flatten(), gradients)?;
        let rounding = match options.fp8 {
            true => {
                check_room(&all_shapes, options.budget)?;
                let [_, _, gate_up, down] = &all_shapes[0][..] else {
                    unreachable!("a layer has four linear layers")
                };
                Some(Rounding::new(gate_up, down, device)?)
            }
            false => None,
        };
        let fits = |shapes: &Vec<LoraShape>| SwigluGrad::fits(&shapes[GATE_UP], &shapes[DOWN]);
        let swiglu_grad = match !options.fp8 && all_shapes.iter().all(fits) {
            true => Some(SwigluGrad::new(adapter.config().r, device)?),
            false => None,
        };
        let elements = |shape: &LoraShape| shape.out_features * (shape.in_features + shape.low());
        let wide_bytes: i64 = all_shapes
            .iter()
            .flatten()
            .map(|shape| 2 * elements(shape))
            .sum();
        // An eighth of the memory for weights leaves enough for what scales with the tokens.
        let cached = wide_bytes as u64 <= options.budget / 8;
        let dequantise = Dequantise::new(device)?;
        let kind = (Kind::BFloat16, device);
        let mut decoded = 0;
        let mut layers = Vec::with_capacity(all_shapes.len());
        for (layer, shapes) in decoder.layers_mut().iter_mut().zip(all_shapes) {
            let mut linears = Vec::with_capacity(4);
            for (linear, shape) in layer.linears_mut().into_iter().zip(shapes) {
                let columns = shape.in_features + shape.low();
                let frozen = if options.fp8 {
                    {
                        let plain = PLAIN_FORWARD.contains(&linears.len());
                        Frozen::Rounded(RoundedWeight::new(linear, shape.low(), plain)?)
                    }
                } else if let Some(wide) = linear.widen(shape.low())? {
                    Frozen::Wide(wide)
                } else if cached {
                    let matrix = Tensor::f_empty([shape.out_features, columns], kind)?;
                    linear.decode_into(&dequantise, &matrix)?;
                    Frozen::Wide(matrix)
                } else {
                    decoded = decoded.max(elements(&shape));
                    Frozen::Packed
                };
                linears.push(EngineLinear {
                    lora: Lora::new(shape, options.fp8, device)?,
                    frozen,
                });
            }
            let Ok(linears) = <[EngineLinear; 4]>::try_from(linears) else {
                unreachable!("a layer has four linear layers")
            };
            layers.push(linears);
        }
        let engine = Self {
            layers,
            norm,
            rotation,
            heads,
            swiglu: Swiglu::new(device)?,
            swiglu_grad,
            arena,
            rounding,
            gemm: Gemm::new(!options.deterministic, device)?,
            cross_entropy: CrossEntropy::new(device)?,
            dequantise,
            decoded: match decoded {
                0 => None,
                elements => Some(Tensor::f_empty([elements], kind)?),
            },
            dropout: adapter.config().dropout,
            deterministic: options.deterministic,
            profile: None,
        };
        engine.install(adapter)?;
        Ok(engine)
    }

    /// Takes over the present parameters of the adapter.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn install(&self, adapter: &Adapter) -> Result<(), LmError> {
        let parameters = adapter.parameters().values();
        self.timed(Part::Optimizer, || {
            for linear in self.layers.iter().flatten() {
                linear.lora.install_a(&parameters)?;
                match &linear.frozen {
                    Frozen::Wide(wide) => {
                        let b = linear.lora.low_of(wide);
                        linear.lora.install_b(&parameters, &b)?;
                    }
                    Frozen::Packed => {}
                    Frozen::Rounded(weight) => weight.install(&linear.lora, &parameters)?,
                }
            }
            Ok(())
        })
    }

    /// Starts (or ends) measuring where the time goes.
    pub fn profile(&mut self, on: bool) {
        self.profile = on.then(Profile::default);
    }

    /// The measurement so far, if there is one.
    pub fn profiled(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    pub fn timed<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        match &self.profile {
            None => work(),
            Some(profile) => profile.time(part, work),
        }
    }

    /// [W | B] of a linear layer that is not rounded. Where weights stay packed it is valid until the next call.
    pub(super) fn weight(
        &self,
        pass: &Pass,
        layer: usize,
        place: usize,
    ) -> Result<Tensor, LmError> {
        let linear = &self.layers[layer][place];
        if let Frozen::Wide(wide) = &linear.frozen {
            return Ok(wide.shallow_clone());
        }
        let shape = linear.lora.shape();
        let columns = shape.in_features + shape.low();
        let room = self
            .decoded
            .as_ref()
            .expect("made where weights stay packed");
        let wide = room
            .f_narrow(0, 0, shape.out_features * columns)?
            .f_view([shape.out_features, columns])?;
        self.timed(Part::Dequantise, || {
            let packed = pass.decoder.layers()[layer].linears()[place];
            packed.decode_into(&self.dequantise, &wide)?;
            let b = linear.lora.low_of(&wide);
            linear.lora.install_b(&pass.parameters, &b)
        })?;
        Ok(wide)
    }

    /// What dropout drops in front of a linear layer.
    pub(super) fn mask(&self, pass: &Pass, layer: usize, place: usize) -> Mask {
        pass.seed.map_or_else(Mask::default, |seed| {
            let path = [seed, layer as u64, place as u64];
            Mask::new(self.dropout, seeds::derive("dropout", &path))
        })
    }

    fn pass<'a>(
        &self,
        decoder: &'a Decoder,
        adapter: &Adapter,
        batch: &'a EngineBatch,
        seed: Option<u64>,
    ) -> Result<Pass<'a>, LmError> {
        Ok(Pass {
            decoder,
            parameters: adapter.parameters().values(),
            sequences: Sequences::new(batch.boundaries, batch.ids.device(), self.deterministic)?,
            rotary: &batch.rotary,
            seed,
            gradient: seed.is_some(),
        })
    }

    /// Adds the gradient of the summed token losses to the adapter's and returns the sum, f64 [], still on the device.
    /// The last `fit.kept` layers keep what their backward pass needs, the others are computed twice. `seed` draws the
    /// dropout.
    ///
    /// # Errors
    /// [`LmError::Kernel`] and [`LmError::Torch`], out of memory included.
    pub fn accumulate(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        batch: &EngineBatch,
        seed: u64,
        fit: &Fit,
    ) -> Result<Tensor, LmError> {
        let pass = self.pass(decoder, adapter, batch, Some(seed))?;
        let count = self.layers.len();
        let mut x = self.timed(Part::Elementwise, || decoder.embed(batch.ids));
        let mut y = None;
        let mut segments = Vec::with_capacity(count);
        for index in 0..count {
            let (saved, down) = self.forward(&pass, index, &x, y.as_ref(), true)?;
            x = saved.x2.shallow_clone();
            y = down;
            segments.push(match index + fit.kept >= count {
                true => Segment::Kept(Box::new(saved)),
                false => Segment::Input(saved.x),
            });
        }
        let (loss, gradient) = self.timed(Part::Head, || {
            self.head(&pass, batch, &x, y.as_ref(), fit.head_bytes)
        })?;
        drop((x, y));
        let mut above = gradient;
        for (index, segment) in segments.into_iter().enumerate().rev() {
            let Some(dx) = above else { break };
            let saved = match segment {
                Segment::Kept(saved) => *saved,
                Segment::Input(x) => self.forward(&pass, index, &x, None, false)?.0,
            };
            above = self.backward(&pass, index, saved, dx)?;
        }
        Ok(loss)
    }

    /// The sum of the token losses, f64 [], without gradients or dropout.
    ///
    /// # Errors
    /// As above.
    pub fn evaluate(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        batch: &EngineBatch,
        head_bytes: u64,
    ) -> Result<Tensor, LmError> {
        let pass = self.pass(decoder, adapter, batch, None)?;
        let mut x = decoder.embed(batch.ids);
        let mut y = None;
        for index in 0..self.layers.len() {
            let (saved, down) = self.forward(&pass, index, &x, y.as_ref(), true)?;
            (x, y) = (saved.x2, down);
        }
        Ok(self.head(&pass, batch, &x, y.as_ref(), head_bytes)?.0)
    }

    /// The loss above the last layer, whose output is x + y, and its gradient there, [T, hidden]. Logits exist for a chunk
    /// of at most `head_bytes` at a time, and only for trained tokens.
    fn head(
        &self,
        pass: &Pass,
        batch: &EngineBatch,
        x: &Tensor,
        y: Option<&Tensor>,
        head_bytes: u64,
    ) -> Result<(Tensor, Option<Operand>), LmError> {
        let (count, hidden) = (batch.rows.size()[0], x.size()[1]);
        let options = (Kind::BFloat16, x.device());
        let selected = |x: &Tensor| x.f_index_select(0, batch.rows);
        let input = selected(x)?;
        let y = y.map(selected).transpose()?;
        let norm = &pass.decoder.norm;
        let normed = Tensor::f_empty([count, hidden], options)?;
        self.norm.forward(
            &input,
            y.as_ref(),
            &norm.weight,
            Some(&input),
            &normed,
            norm.eps,
        )?;
        drop(y);
        let head = pass.decoder.head_weight();
        let vocab = head.size()[0];
        let losses = Tensor::f_empty([count], (Kind::Float, x.device()))?;
        let chunk = (head_bytes as i64 / (2 * vocab))
            .clamp(64, 8192)
            .min(count.max(1));
        let room = Tensor::f_empty([chunk, vocab], options)?;
        for start in (0..count).step_by(chunk as usize) {
            let length = chunk.min(count - start);
            let logits = room.f_narrow(0, 0, length)?;
            let rows = normed.f_narrow(0, start, length)?;
            let _ = rows.f_mm_out(&logits, &head.tr())?;
            let targets = batch.targets.f_narrow(0, start, length)?;
            let loss = losses.f_narrow(0, start, length)?;
            self.cross_entropy
                .run(&logits, &targets, &loss, pass.gradient)?;
            if pass.gradient {
                // The rows have served: their gradient takes their place.
                let _ = logits.f_mm_out(&rows, &head)?;
            }
        }
        let loss = losses.f_sum(Kind::Double)?;
        if !pass.gradient || count == 0 {
            return Ok((loss, None));
        }
        drop(room);
        let below = Tensor::f_empty([count, hidden], options)?;
        self.norm.backward(
            &input,
            &norm.weight,
            &normed,
            None,
            &below,
            None,
            None,
            norm.eps,
        )?;
        let rows = x.f_zeros_like()?.f_index_copy_(0, batch.rows, &below)?;
        let largest = None;
        Ok((loss, Some(Operand { rows, largest })))
    }
}
