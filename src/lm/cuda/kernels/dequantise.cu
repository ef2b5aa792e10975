// Packed weights [out, in] decoded into bf16 rows that are `stride` apart. A thread decodes 8 elements of a row; `in` is a
// multiple of 8. Each operation is rounded by itself, so the bits are those of the decoders in nf4.rs and int8.rs.

// `values` [16]; scales are f32 [blocks], or, where `map` is given, u8 codes of `map` [256] times `nested` [blocks /
// nested_block] plus `offset`.
extern "C" __global__ void __launch_bounds__(256)
    nf4(const unsigned char *packed, const void *scales, const float *nested, const float *map, const float *values,
        bf16 *out, int stride, int in, long long elements, int block, int nested_block, float offset) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    long long first = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
    if (first >= elements) return;
    unsigned bytes = *(const unsigned *)(packed + first / 2);
    long long at = first / block;
    float scale;
    if (map)
        scale = __fadd_rn(__fmul_rn(map[((const unsigned char *)scales)[at]], nested[at / nested_block]), offset);
    else
        scale = ((const float *)scales)[at];
    float x[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        unsigned byte = bytes >> (8 * i) & 0xff;
        // The first of two elements is in the high half of its byte.
        x[2 * i] = __fmul_rn(table[byte >> 4], scale);
        x[2 * i + 1] = __fmul_rn(table[byte & 15], scale);
    }
    *(uint4 *)(out + first / in * stride + first % in) = pack(x);
}

extern "C" __global__ void __launch_bounds__(256)
    int8(const signed char *codes, const float *absmax, bf16 *out, int stride, int in, long long elements) {
    long long first = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
    if (first >= elements) return;
    long long row = first / in;
    float scale = __fdiv_rn(absmax[row], 127.0f), x[8];
    u64 bytes = *(const u64 *)(codes + first);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = __fmul_rn((float)(signed char)(bytes >> (8 * i)), scale);
    *(uint4 *)(out + row * stride + first % in) = pack(x);
}
