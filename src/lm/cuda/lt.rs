//! cuBLASLt: the algorithms that there are for a product of bf16 matrices, and the product by one of them.

use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::sys;
use sys::cublasLtClusterShape_t as Cluster;
use sys::cublasLtMatmulTile_t as Tile;
use tch::{Device, Kind, Tensor};

use super::module::{bf16_rows, current_stream};
use crate::lm::LmError;

const NAME: &str = "cuBLASLt";
/// As libtorch gives cuBLAS on Hopper.
const WORKSPACE: i64 = 32 << 20;
/// The most algorithms that are asked for; the library names 8 at most.
const NAMED: usize = 16;

/// Tiles, clusters and the library's own option that were fastest for some shape of a model of 4 billion parameters on an
/// H200, found by trying all; the library does not name them by itself for the shapes that they are best for.
const FOUND: [(Tile, Cluster, u32); 14] = [
    (
        Tile::CUBLASLT_MATMUL_TILE_176x128,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x2x1,
        2,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_192x224,
        Cluster::CUBLASLT_CLUSTER_SHAPE_2x1x1,
        5,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_256x160,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x2x1,
        7,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_128x328,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x1x1,
        7,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_336x128,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x2x1,
        6,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_328x128,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x2x1,
        4,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_264x128,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x2x1,
        6,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_128x320,
        Cluster::CUBLASLT_CLUSTER_SHAPE_2x1x1,
        7,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_128x168,
        Cluster::CUBLASLT_CLUSTER_SHAPE_2x1x1,
        1,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_128x176,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x1x1,
        3,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_128x160,
        Cluster::CUBLASLT_CLUSTER_SHAPE_2x1x1,
        1,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_160x128,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x2x1,
        2,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_256x128,
        Cluster::CUBLASLT_CLUSTER_SHAPE_1x2x1,
        7,
    ),
    (
        Tile::CUBLASLT_MATMUL_TILE_128x256,
        Cluster::CUBLASLT_CLUSTER_SHAPE_2x1x1,
        4,
    ),
];

/// How a product is computed.
#[derive(Clone, Copy)]
pub(super) struct Algorithm(sys::cublasLtMatmulAlgo_t);

/// The library on one device.
pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: Tensor,
    device: i32,
}

#[expect(unsafe_code, reason = "the library's handle may be used by any thread")]
unsafe impl Send for Lt {}

impl Lt {
    /// None where there is no GPU or no such library.
    ///
    /// # Errors
    /// [`LmError::Kernel`] where the library refuses; out of memory.
    pub(super) fn new(device: Device) -> Result<Option<Self>, LmError> {
        let Device::Cuda(index) = device else {
            return Ok(None);
        };
        #[expect(unsafe_code, reason = "looks for the library and runs nothing of it")]
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let mut handle = ptr::null_mut();
        #[expect(unsafe_code, reason = "a C library")]
        check(unsafe { sys::cublasLtCreate(&raw mut handle) })?;
        Ok(Some(Self {
            handle,
            workspace: Tensor::f_empty([WORKSPACE], (Kind::Uint8, device))?,
            device: i32::try_from(index).unwrap_or(i32::MAX),
        }))
    }

    /// The algorithms for a product, the library's own choice first.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub(super) fn algorithms(&self, product: &Product) -> Result<Vec<Algorithm>, LmError> {
        let preference = Preference::new()?;
        #[expect(unsafe_code, reason = "a plain struct that the library fills")]
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; NAMED] =
            unsafe { std::mem::zeroed() };
        let mut count = 0;
        #[expect(unsafe_code, reason = "a C library; all descriptions live")]
        check(unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                product.operation,
                product.weight,
                product.rows,
                product.out,
                product.out,
                preference.0,
                NAMED as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        })?;
        let named = found.iter().take(usize::try_from(count).unwrap_or(0));
        let named = named.filter(|one| one.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let mut all: Vec<Algorithm> = named.map(|one| Algorithm(one.algo)).collect();
        let Some(first) = all.first().copied() else {
            return Ok(all);
        };
        let others = FOUND.iter().filter_map(|&found| first.with(found));
        all.extend(others.filter(|other| self.takes(product, other)));
        Ok(all)
    }

    /// Whether the algorithm can compute the product.
    pub(super) fn takes(&self, product: &Product, algorithm: &Algorithm) -> bool {
        #[expect(unsafe_code, reason = "a C library; a plain struct that it fills")]
        unsafe {
            let mut result: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let status = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                product.operation,
                product.weight,
                product.rows,
                product.out,
                product.out,
                &raw const algorithm.0,
                &raw mut result,
            );
            status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
                && result.workspaceSize <= WORKSPACE as usize
        }
    }

    /// The product, launched on libtorch's stream.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub(super) fn multiply(
        &self,
        product: &Product,
        algorithm: &Algorithm,
        [x, weight, out]: [&Tensor; 3],
    ) -> Result<(), LmError> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let pointer = |tensor: &Tensor| tensor.data_ptr();
        #[expect(unsafe_code, reason = "a C library; the tensors are those described")]
        check(unsafe {
            sys::cublasLtMatmul(
                self.handle,
                product.operation,
                (&raw const one).cast(),
                pointer(weight),
                product.weight,
                pointer(x),
                product.rows,
                (&raw const zero).cast(),
                pointer(out),
                product.out,
                pointer(out),
                product.out,
                &raw const algorithm.0,
                pointer(&self.workspace),
                WORKSPACE as usize,
                current_stream(self.device).cast(),
            )
        })
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the handle is ours")]
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

impl Algorithm {
    /// The same with another tile, cluster and option; None where the library knows no such setting.
    fn with(self, (tile, cluster, option): (Tile, Cluster, u32)) -> Option<Self> {
        use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
        let mut algorithm = self.0;
        let mut set = |attribute, value: u32, bytes: usize| {
            let value = (&raw const value).cast::<c_void>();
            #[expect(
                unsafe_code,
                reason = "a C library; little-endian, so the low bytes lie first"
            )]
            let status = unsafe {
                sys::cublasLtMatmulAlgoConfigSetAttribute(
                    &raw mut algorithm,
                    attribute,
                    value,
                    bytes,
                )
            };
            (status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(())
        };
        let stages = sys::cublasLtMatmulStages_t::CUBLASLT_MATMUL_STAGES_64xAUTO;
        set(Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID, tile as u32, 4)?;
        set(Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID, stages as u32, 4)?;
        set(Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, option, 4)?;
        set(
            Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID,
            cluster as u32,
            2,
        )?;
        Some(Self(algorithm))
    }
}

/// The description of a product of rows with a weight.
pub(super) struct Product {
    operation: sys::cublasLtMatmulDesc_t,
    rows: sys::cublasLtMatrixLayout_t,
    weight: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

impl Product {
    /// x [T, k] · weight [k, n], or [n, k] transposed, into out [T, n]; all bf16, of any row strides.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub(super) fn new([x, weight, out]: [&Tensor; 3], transposed: bool) -> Result<Self, LmError> {
        // The library's matrices lie column by column, so rows are columns to it, and the weight is the left operand.
        let mut product = Self {
            operation: ptr::null_mut(),
            rows: layout(x)?,
            weight: ptr::null_mut(),
            out: ptr::null_mut(),
        };
        (product.weight, product.out) = (layout(weight)?, layout(out)?);
        // The library's `CUBLAS_OP_N` and `CUBLAS_OP_T`.
        let turned = i32::from(transposed);
        #[expect(unsafe_code, reason = "a C library")]
        unsafe {
            check(sys::cublasLtMatmulDescCreate(
                &raw mut product.operation,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType::CUDA_R_32F,
            ))?;
            check(sys::cublasLtMatmulDescSetAttribute(
                product.operation,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const turned).cast(),
                size_of_val(&turned),
            ))?;
        }
        Ok(product)
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        #[expect(
            unsafe_code,
            reason = "the descriptions are ours, and made unless null"
        )]
        unsafe {
            if !self.operation.is_null() {
                let _ = sys::cublasLtMatmulDescDestroy(self.operation);
            }
            for layout in [self.rows, self.weight, self.out] {
                if !layout.is_null() {
                    let _ = sys::cublasLtMatrixLayoutDestroy(layout);
                }
            }
        }
    }
}

/// Of a bf16 matrix, its rows as columns.
fn layout(matrix: &Tensor) -> Result<sys::cublasLtMatrixLayout_t, LmError> {
    let [rows, columns] = matrix.size()[..] else {
        unreachable!("matrices have two dimensions")
    };
    let mut layout = ptr::null_mut();
    #[expect(unsafe_code, reason = "a C library")]
    check(unsafe {
        sys::cublasLtMatrixLayoutCreate(
            &raw mut layout,
            sys::cudaDataType::CUDA_R_16BF,
            columns as u64,
            rows as u64,
            bf16_rows(matrix),
        )
    })?;
    Ok(layout)
}

/// What the library may take for an algorithm.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, LmError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let mut preference = Self(ptr::null_mut());
        let workspace = WORKSPACE as u64;
        #[expect(unsafe_code, reason = "a C library")]
        unsafe {
            check(sys::cublasLtMatmulPreferenceCreate(&raw mut preference.0))?;
            check(sys::cublasLtMatmulPreferenceSetAttribute(
                preference.0,
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<u64>(),
            ))?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        if !self.0.is_null() {
            #[expect(unsafe_code, reason = "the description is ours")]
            let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
        }
    }
}

fn check(status: sys::cublasStatus_t) -> Result<(), LmError> {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        status => Err(LmError::kernel(NAME, format!("{status:?}"))),
    }
}
