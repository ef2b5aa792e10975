// The loss of each row of logits, and its gradient in their place.

#define INFINITY_F __int_as_float(0x7f800000)

// logits [rows, vocab] in bf16, a block a row; loss [rows] = logsumexp - logits[target]. With `gradient` the logits become
// softmax - one-hot.
extern "C" __global__ void __launch_bounds__(1024)
    cross_entropy(bf16 *logits, const long long *targets, float *loss, int vocab, int gradient) {
    __shared__ float scratch[2][32];
    bf16 *row = logits + (u64)blockIdx.x * vocab;
    float largest = -INFINITY_F, sum = 0.0f;
    for (int column = threadIdx.x * 8; column < vocab; column += 1024 * 8) {
        float x[8];
        unpack(*(const uint4 *)(row + column), x);
        float top = x[0];
#pragma unroll
        for (int i = 1; i < 8; i++) top = fmaxf(top, x[i]);
        if (top > largest) {
            sum *= __expf(largest - top);
            largest = top;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sum += __expf(x[i] - largest);
    }
    float top = warp_max(largest);
    // A lane that saw no column has nothing to rescale.
    sum = lanes_sum<32>(largest == -INFINITY_F ? 0.0f : sum * __expf(largest - top));
    if (threadIdx.x % 32 == 0) scratch[0][threadIdx.x / 32] = top, scratch[1][threadIdx.x / 32] = sum;
    __syncthreads();
    largest = warp_max(scratch[0][threadIdx.x % 32]);
    float part = scratch[0][threadIdx.x % 32];
    sum = lanes_sum<32>(part == -INFINITY_F ? 0.0f : scratch[1][threadIdx.x % 32] * __expf(part - largest));
    int target = (int)targets[blockIdx.x];
    float logsumexp = largest + logf(sum);
    if (threadIdx.x == 0) loss[blockIdx.x] = logsumexp - to_float(row[target]);
    if (!gradient) return;
    // The target's logit has been read before it is overwritten.
    __syncthreads();
    for (int column = threadIdx.x * 8; column < vocab; column += 1024 * 8) {
        float x[8];
        unpack(*(const uint4 *)(row + column), x);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = __expf(x[i] - logsumexp) - (column + i == target ? 1.0f : 0.0f);
        *(uint4 *)(row + column) = pack(x);
    }
}
