//! Products of many rows with frozen weights, by the algorithm that is fastest for their shape on this card: measured once
//! a shape has come up often enough to be worth it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr;

use cudarc::driver::{result, sys};
use tch::{Device, Kind, Tensor};

use super::lt::{Algorithm, Lt, Product};
use super::module::bf16_rows;
use crate::lm::LmError;

/// Products of a shape before its algorithms are measured, which takes as long as a hundred products.
const USES: usize = 40;
/// Numbers of rows in one such range share an algorithm: sequences of mixed lengths hardly ever give the same one again.
const ROWS: i64 = 1024;
/// Elements of a weight from which on the choice is worth its cost: those of models below half a billion parameters are
/// smaller, and their products are over before the choice matters.
const LARGE: usize = 1 << 22;
/// Products that are timed together, and how often.
const TOGETHER: usize = 2;
const ROUNDS: usize = 2;

/// What algorithms depend on: rows in [`ROWS`], the weight's shape, all row strides, and whether it is transposed.
type Shape = (i64, i64, i64, [i64; 3], bool);

enum Known {
    Uses(usize),
    /// None: libtorch's own is the fastest.
    Best(Option<Algorithm>),
}

/// The products of one engine.
pub struct Gemm {
    /// None where libtorch is to compute all.
    lt: Option<Lt>,
    known: RefCell<HashMap<Shape, Known>>,
}

impl Gemm {
    /// `measures`: whether algorithms may be chosen by measurement, so that another run may round otherwise.
    ///
    /// # Errors
    /// [`LmError::Kernel`]; out of memory.
    pub fn new(measures: bool, device: Device) -> Result<Self, LmError> {
        Ok(Self {
            lt: match measures {
                true => Lt::new(device)?,
                false => None,
            },
            known: RefCell::default(),
        })
    }

    /// x [T, k] · weight [k, n], or [n, k] `transposed`.
    ///
    /// # Errors
    /// [`LmError::Kernel`] and [`LmError::Torch`], out of memory included.
    pub fn multiply(
        &self,
        x: &Tensor,
        weight: &Tensor,
        transposed: bool,
    ) -> Result<Tensor, LmError> {
        let columns = weight.size()[usize::from(!transposed)];
        let out = Tensor::f_empty([x.size()[0], columns], (Kind::BFloat16, x.device()))?;
        let operands = [x, weight, &out];
        match &self.lt {
            Some(lt) if x.size()[0] > 0 && weight.numel() >= LARGE => {
                let product = Product::new(operands, transposed)?;
                match self.best(lt, &product, operands, transposed)? {
                    Some(best) if lt.takes(&product, &best) => {
                        lt.multiply(&product, &best, operands)?;
                    }
                    _ => plain(operands, transposed)?,
                }
            }
            _ => plain(operands, transposed)?,
        }
        Ok(out)
    }

    /// For how many shapes algorithms have been measured.
    #[cfg(test)]
    pub(super) fn chosen(&self) -> usize {
        let known = self.known.borrow();
        let chosen = known
            .values()
            .filter(|known| matches!(known, Known::Best(_)));
        chosen.count()
    }

    /// The fastest algorithm, where it is known by now and is not libtorch's.
    fn best(
        &self,
        lt: &Lt,
        product: &Product,
        operands: [&Tensor; 3],
        transposed: bool,
    ) -> Result<Option<Algorithm>, LmError> {
        let [x, weight, _] = operands;
        let [rows, columns] = weight.size()[..] else {
            unreachable!("a weight has two dimensions")
        };
        let range = (x.size()[0] + ROWS - 1) / ROWS;
        let shape = (range, rows, columns, operands.map(bf16_rows), transposed);
        let mut known = self.known.borrow_mut();
        let entry = known.entry(shape).or_insert(Known::Uses(0));
        match entry {
            Known::Best(best) => return Ok(*best),
            Known::Uses(uses) if *uses < USES => {
                *uses += 1;
                return Ok(None);
            }
            Known::Uses(_) => {}
        }
        let best = measure(lt, product, operands, transposed)?;
        *entry = Known::Best(best);
        Ok(best)
    }
}

/// By libtorch, whose library chooses by rules.
fn plain([x, weight, out]: [&Tensor; 3], transposed: bool) -> Result<(), LmError> {
    let weight = match transposed {
        true => weight.tr(),
        false => weight.shallow_clone(),
    };
    let _ = x.f_mm_out(out, &weight)?;
    Ok(())
}

/// The fastest algorithm; None where libtorch's own is no slower.
fn measure(
    lt: &Lt,
    product: &Product,
    operands: [&Tensor; 3],
    transposed: bool,
) -> Result<Option<Algorithm>, LmError> {
    let algorithms = lt.algorithms(product)?;
    let mut choices = vec![None];
    choices.extend(algorithms.into_iter().map(Some));
    let mut fastest = vec![f32::INFINITY; choices.len()];
    let timer = Timer::new()?;
    // The first round also loads the kernels, and is not counted.
    for round in 0..=ROUNDS {
        for (choice, fastest) in choices.iter().zip(&mut fastest) {
            let once = || match choice {
                None => plain(operands, transposed),
                Some(algorithm) => lt.multiply(product, algorithm, operands),
            };
            if round == 0 {
                once()?;
                continue;
            }
            let time = timer.time(|| (0..TOGETHER).try_for_each(|_| once()))?;
            *fastest = fastest.min(time);
        }
    }
    let (at, _) = (fastest.iter().enumerate())
        .min_by(|a, b| a.1.total_cmp(b.1))
        .expect("libtorch's own is among them");
    Ok(choices[at])
}

/// Two events on the default stream, on which training works.
struct Timer {
    start: sys::CUevent,
    end: sys::CUevent,
}

impl Timer {
    fn new() -> Result<Self, LmError> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed);
        Ok(Self {
            start: event()?,
            end: event()?,
        })
    }

    /// Milliseconds that what `work` launches takes.
    fn time(&self, work: impl FnOnce() -> Result<(), LmError>) -> Result<f32, LmError> {
        #[expect(
            unsafe_code,
            reason = "both events live, and the stream is the default one"
        )]
        unsafe {
            result::event::record(self.start, ptr::null_mut()).map_err(failed)?;
            work()?;
            result::event::record(self.end, ptr::null_mut()).map_err(failed)?;
            result::event::synchronize(self.end).map_err(failed)?;
            result::event::elapsed(self.start, self.end).map_err(failed)
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        for event in [self.start, self.end] {
            #[expect(unsafe_code, reason = "the events are ours")]
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

fn failed(error: result::DriverError) -> LmError {
    LmError::kernel("gemm", error)
}
