// y = x · weightᵀ for one to four rows, where the time is that of reading the weight once. A warp per output.
// x: [rows, in]; weight: [out, in], rows `stride` apart; y: [rows, out]. `in` and `stride` are multiples of 8.

#define WARPS 8
#define UNROLL 4  // loads in flight per thread

// The weight is read once, so it does not push anything out of the cache.
__device__ __forceinline__ uint4 load_once(const bf16 *from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

template <int ROWS>
__device__ __forceinline__ void few_rows(const bf16 *x, const bf16 *weight, bf16 *y, int out, int in, int stride) {
    const int n = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (n >= out) return;
    const bf16 *row = weight + (u64)n * stride;
    float sums[ROWS] = {};
    for (int first = lane * 8; first < in; first += UNROLL * 256) {
        uint4 raw[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (first + u * 256 < in) raw[u] = load_once(row + first + u * 256);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int column = first + u * 256;
            if (column >= in) continue;
            float w[8];
            unpack(raw[u], w);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float v[8];
                unpack(*(const uint4 *)(x + (u64)r * in + column), v);
#pragma unroll
                for (int i = 0; i < 8; i++) sums[r] += w[i] * v[i];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float sum = lanes_sum<32>(sums[r]);
        if (lane == 0) y[(u64)r * out + n] = to_bf16(sum);
    }
}

#define FEW_ROWS(ROWS)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                             \
        few_rows_##ROWS(const bf16 *x, const bf16 *weight, bf16 *y, int out, int in, int stride) {                       \
        few_rows<ROWS>(x, weight, y, out, in, stride);                                                                   \
    }
FEW_ROWS(1)
FEW_ROWS(2)
FEW_ROWS(3)
FEW_ROWS(4)
