// AdamW over flat parameters, moments in f32 or in blocks of 256 codes of 8 bits (see adamw.rs). Each operation is rounded
// by itself, as libtorch's are, so that a step agrees with the one in tensor algebra.

struct Update {
    float learning_rate, beta1, beta2, epsilon, weight_decay, correction1, root_correction2;
};

// The gradient's factor: its division by the trained tokens, and the clip of its norm. `norm` is that of the undivided
// gradient. A norm that is no number leaves everything as it is.
__device__ __forceinline__ float gradient_scale(const float *norm, float tokens, float max_norm) {
    float length = *norm / tokens;
    return fminf(1.0f, max_norm / (length + 1e-6f)) / tokens;
}

__device__ __forceinline__ bool finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }

__device__ __forceinline__ void step(float &parameter, float &first, float &second, float gradient, const Update &u) {
    first = __fadd_rn(__fmul_rn(first, u.beta1), __fmul_rn(gradient, 1.0f - u.beta1));
    second = __fadd_rn(__fmul_rn(second, u.beta2), __fmul_rn(__fmul_rn(gradient, 1.0f - u.beta2), gradient));
    float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(second), u.root_correction2), u.epsilon);
    float change = __fmul_rn(__fdiv_rn(first, denominator), u.learning_rate / u.correction1);
    parameter = __fsub_rn(__fmul_rn(parameter, 1.0f - u.learning_rate * u.weight_decay), change);
}

extern "C" __global__ void __launch_bounds__(256)
    adamw(float *parameters, const float *gradients, float *first, float *second, long long count, const float *norm,
          float tokens, float max_norm, float learning_rate, float beta1, float beta2, float epsilon, float weight_decay,
          float correction1, float root_correction2) {
    long long index = (long long)blockIdx.x * 256 + threadIdx.x;
    if (index >= count || !finite(*norm)) return;
    Update update = {learning_rate, beta1, beta2, epsilon, weight_decay, correction1, root_correction2};
    step(parameters[index], first[index], second[index],
         __fmul_rn(gradients[index], gradient_scale(norm, tokens, max_norm)), update);
}

// The largest magnitude of a block of 256 threads.
__device__ __forceinline__ float block_max(float x, float *scratch) {
    x = warp_max(fabsf(x));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_max(scratch[threadIdx.x % 8]);
}

// `lookup` [65536] gives the code of -1 + 2 · i / 65535.
__device__ __forceinline__ unsigned char code(float x, float absmax, const unsigned char *lookup) {
    float inverse = __fdiv_rn(1.0f, fmaxf(absmax, 1.17549435e-38f));
    float place = __fmul_rn(__fmul_rn(__fadd_rn(__fmul_rn(x, inverse), 1.0f), 0.5f), 65535.0f);
    return lookup[(int)floorf(__fadd_rn(place, 0.5f))];
}

// A block of threads to a block of elements.
extern "C" __global__ void __launch_bounds__(256)
    adamw_8bit(float *parameters, const float *gradients, unsigned char *first_codes, float *first_absmax,
               unsigned char *second_codes, float *second_absmax, const float *signed_values,
               const unsigned char *signed_lookup, const float *unsigned_values, const unsigned char *unsigned_lookup,
               const float *norm, float tokens, float max_norm, float learning_rate, float beta1, float beta2,
               float epsilon, float weight_decay, float correction1, float root_correction2) {
    __shared__ float scratch[2][8];
    if (!finite(*norm)) return;
    u64 index = (u64)blockIdx.x * 256 + threadIdx.x;
    Update update = {learning_rate, beta1, beta2, epsilon, weight_decay, correction1, root_correction2};
    float first = __fmul_rn(signed_values[first_codes[index]], first_absmax[blockIdx.x]);
    float second = __fmul_rn(unsigned_values[second_codes[index]], second_absmax[blockIdx.x]);
    step(parameters[index], first, second, __fmul_rn(gradients[index], gradient_scale(norm, tokens, max_norm)), update);
    float first_max = block_max(first, scratch[0]), second_max = block_max(second, scratch[1]);
    first_codes[index] = code(first, first_max, signed_lookup);
    second_codes[index] = code(second, second_max, unsigned_lookup);
    if (threadIdx.x == 0) first_absmax[blockIdx.x] = first_max, second_absmax[blockIdx.x] = second_max;
}
