// Packed weights [out, in] decoded into bf16 rows that are `stride` apart. A thread decodes 8 elements of a row at a time;
// `in` is a multiple of 8, and a weight has fewer than 2^32 elements. Each operation is rounded by itself, so the bits are
// those of the decoders in nf4.rs and int8.rs.

#define EACH 4

// `values` [16]; scales are f32 [blocks], or, where `map` is given, u8 codes of `map` [256] times `nested` [blocks /
// nested block] plus `offset`. Blocks have 2^shift elements. A thread decodes EACH times 8 elements.
extern "C" __global__ void __launch_bounds__(256)
    nf4(const unsigned char *packed, const void *scales, const float *nested, const float *map, const float *values,
        bf16 *out, int stride, unsigned in, unsigned elements, int shift, int nested_shift, float offset) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    unsigned start = (blockIdx.x * EACH * 256 + threadIdx.x) * 8;
    unsigned bytes[EACH];
    float scale[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        unsigned first = start + e * 256 * 8;
        if (first >= elements) continue;
        bytes[e] = *(const unsigned *)(packed + first / 2);
        unsigned at = first >> shift;
        if (map)
            scale[e] = __fadd_rn(__fmul_rn(map[((const unsigned char *)scales)[at]], nested[at >> nested_shift]), offset);
        else
            scale[e] = ((const float *)scales)[at];
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        unsigned first = start + e * 256 * 8;
        if (first >= elements) continue;
        float x[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned byte = bytes[e] >> (8 * i) & 0xff;
            // The first of two elements is in the high half of its byte.
            x[2 * i] = __fmul_rn(table[byte >> 4], scale[e]);
            x[2 * i + 1] = __fmul_rn(table[byte & 15], scale[e]);
        }
        *(uint4 *)(out + (u64)(first / in) * stride + first % in) = pack(x);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    int8(const signed char *codes, const float *absmax, bf16 *out, int stride, unsigned in, unsigned elements) {
    unsigned first = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (first >= elements) return;
    unsigned row = first / in;
    float scale = __fdiv_rn(absmax[row], 127.0f), x[8];
    u64 bytes = *(const u64 *)(codes + first);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = __fmul_rn((float)(signed char)(bytes >> (8 * i)), scale);
    *(uint4 *)(out + (u64)row * stride + first % in) = pack(x);
}
