// What all kernels share: bf16 by its bits, sums over warps and blocks, the tensor core, the dropout mask.
// No header is included, so nothing but the compiler is needed where flow runs.

typedef unsigned short bf16;
typedef unsigned long long u64;

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

// Two floats rounded to nearest even; `low` lies first in memory.
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ bf16 to_bf16(float x) { return (bf16)pack(x, 0.0f); }

// A float rounded to bf16 and back, where the reference rounds between two operations.
__device__ __forceinline__ float rounded(float x) { return low_half(pack(x, 0.0f)); }

__device__ __forceinline__ void unpack(const uint4 &v, float (&x)[8]) {
    x[0] = low_half(v.x), x[1] = high_half(v.x), x[2] = low_half(v.y), x[3] = high_half(v.y);
    x[4] = low_half(v.z), x[5] = high_half(v.z), x[6] = low_half(v.w), x[7] = high_half(v.w);
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    return make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
}

// `WIDTH` is a power of two of at most 32 neighbouring lanes.
template <int WIDTH>
__device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <int WIDTH>
__device__ __forceinline__ float lanes_max(float x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ __forceinline__ float warp_max(float x) { return lanes_max<32>(x); }

// The sum over `WARPS` neighbouring warps; `scratch` has one float a warp and is free again at the next barrier.
template <int WARPS>
__device__ __forceinline__ float warps_sum(float x, float *scratch) {
    x = lanes_sum<32>(x);
    if (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) x += scratch[threadIdx.x / 32 / WARPS * WARPS + warp];
    return x;
}

// The largest over `WARPS` neighbouring warps, as [`warps_sum`].
template <int WARPS>
__device__ __forceinline__ float warps_max(float x, float *scratch) {
    x = warp_max(x);
    if (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) x = fmaxf(x, scratch[threadIdx.x / 32 / WARPS * WARPS + warp]);
    return x;
}

// place = max(place, x) for x ≥ 0, whose bits are ordered as the numbers are; any order of calls gives the same.
__device__ __forceinline__ void atomic_max(float *place, float x) { atomicMax((unsigned *)place, __float_as_uint(x)); }

#define LARGEST_E4M3 448.0f

// Two floats to e4m3, saturating; `low` lies first in memory.
__device__ __forceinline__ unsigned pack_e4m3(float low, float high) {
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ uint2 pack_e4m3(const float (&x)[8]) {
    return make_uint2(pack_e4m3(x[0], x[1]) | pack_e4m3(x[2], x[3]) << 16,
                      pack_e4m3(x[4], x[5]) | pack_e4m3(x[6], x[7]) << 16);
}

// c += a · b for a 16 × 16 (row-major) and b 16 × 8 (column-major); each lane holds its part as the PTX manual says.
__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8 × 8 matrices of shared memory, transposed; lane l names the row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_transposed(unsigned (&x)[4], const bf16 *row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address));
}

// The index-th word of splitmix64's stream, as in seeds.rs.
__device__ __forceinline__ u64 splitmix64(u64 seed, u64 index) {
    u64 word = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebull;
    return word ^ (word >> 31);
}

// Which of the 8 elements from `element` (a multiple of 8) dropout keeps: all bits of its half are 1. The definition is
// that of dropout.rs: 16 bits of a word decide one element. `threshold` is doubled into both halves.
__device__ __forceinline__ uint4 keep_mask(u64 seed, u64 element, unsigned threshold) {
    u64 first = splitmix64(seed, element / 4), second = splitmix64(seed, element / 4 + 1);
    return make_uint4(__vcmpgeu2((unsigned)first, threshold), __vcmpgeu2((unsigned)(first >> 32), threshold),
                      __vcmpgeu2((unsigned)second, threshold), __vcmpgeu2((unsigned)(second >> 32), threshold));
}

__device__ __forceinline__ uint4 operator&(const uint4 &a, const uint4 &b) {
    return make_uint4(a.x & b.x, a.y & b.y, a.z & b.z, a.w & b.w);
}
