// The choice of the next token on the device: the processors and the random stream of `sample.rs`, and the bookkeeping of
// the slots, so that a step needs nothing from the host.
//
// Per slot: history [capacity] (prompt and new tokens), length (tokens in it), made (new ones among them), limit (new
// tokens allowed) and state; how its tokens are chosen: penalty, temperature, top_p, top_k, ngram and minimum. Bit sets over
// the vocabulary: seen (for the repetition penalty) and banned, which is empty between steps. `slots` names the slot of
// each row. Rows with a temperature are drawn, the others take the best token.

#define RUNNING 1
#define STOPPED 2
#define FULL 3
#define FAILED 4

// What the processors need to know of a row.
struct Row {
    const bf16 *logits;  // [vocab]
    const unsigned *seen;          // or null
    const unsigned *banned;        // or null
    float penalty;
};

#define NEVER (-__int_as_float(0x7f800000))

__device__ __forceinline__ bool has(const unsigned *set, int id) { return set[id >> 5] >> (id & 31) & 1; }

__device__ __forceinline__ float processed(const Row &row, int id, bf16 raw) {
    float x = to_float(raw);
    if (row.seen != nullptr && has(row.seen, id)) x = x < 0.0f ? x * row.penalty : x / row.penalty;
    if (row.banned != nullptr && has(row.banned, id)) x = NEVER;
    return x;
}

__device__ __forceinline__ Row row_of(const bf16 *logits, const unsigned *seen, const unsigned *banned,
                                      float penalty, int row, int slot, int vocab) {
    const int words = (vocab + 31) / 32;
    return {logits + (long long)row * vocab, seen == nullptr ? nullptr : seen + (long long)slot * words,
            banned == nullptr ? nullptr : banned + (long long)slot * words, penalty};
}

// The embedding of each row's newest token, and its position (-1 for a row that is done). A block per row.
extern "C" __global__ void embed_newest(const bf16 *embedding, const int *history, const int *length,
                                        const int *state, const int *slots, int *positions, bf16 *x,
                                        int capacity, int hidden) {
    const int row = blockIdx.x, slot = slots[row];
    const int newest = max(length[slot] - 1, 0);
    const long long id = history[(long long)slot * capacity + newest];
    for (int column = threadIdx.x * 8; column < hidden; column += blockDim.x * 8)
        *(uint4 *)(x + (long long)row * hidden + column) = *(const uint4 *)(embedding + id * hidden + column);
    if (threadIdx.x == 0) positions[row] = state[slot] == RUNNING ? newest : -1;
}

// Enters the tokens that a slot begins with into its set. A block per row.
extern "C" __global__ void mark_seen(const int *history, const int *length, const int *slots, unsigned *seen, int capacity,
                                     int vocab) {
    const int slot = slots[blockIdx.x], words = (vocab + 31) / 32;
    for (int i = threadIdx.x; i < length[slot]; i += blockDim.x) {
        const int id = history[(long long)slot * capacity + i];
        atomicOr(seen + (long long)slot * words + (id >> 5), 1u << (id & 31));
    }
}

// Sets or clears the bits of all tokens that the row may not take next: those that would repeat an n-gram, and the
// stop tokens before `minimum` new tokens.
__device__ __forceinline__ void ban_row(bool on, const int *ids, int length, int made, unsigned *banned, int ngram,
                                        int minimum, const int *stops, int stop_count) {
    if (ngram > 0 && length + 1 >= ngram) {
        const int *last = ids + length + 1 - ngram;
        for (int i = threadIdx.x; i + ngram <= length; i += blockDim.x) {
            bool same = true;
            for (int j = 0; same && j + 1 < ngram; j++) same = ids[i + j] == last[j];
            if (!same) continue;
            const int id = ids[i + ngram - 1];
            if (on) atomicOr(banned + (id >> 5), 1u << (id & 31));
            else atomicAnd(banned + (id >> 5), ~(1u << (id & 31)));
        }
    }
    for (int i = threadIdx.x; made < minimum && i < stop_count; i += blockDim.x) {
        const int id = stops[i];
        if (on) atomicOr(banned + (id >> 5), 1u << (id & 31));
        else atomicAnd(banned + (id >> 5), ~(1u << (id & 31)));
    }
}

extern "C" __global__ void ban(const int *history, const int *length, const int *made, const int *state, const int *slots,
                               unsigned *banned, int capacity, int vocab, const int *ngram, const int *minimum,
                               const int *stops, int stop_count) {
    const int slot = slots[blockIdx.x], words = (vocab + 31) / 32;
    if (state[slot] != RUNNING) return;
    ban_row(true, history + (long long)slot * capacity, length[slot], made[slot], banned + (long long)slot * words,
            ngram[slot], minimum[slot], stops, stop_count);
}

__device__ __forceinline__ void better(float &value, int &index, float other, int at) {
    if (other > value || (other == value && at < index)) {
        value = other;
        index = at;
    }
}

__device__ __forceinline__ void best_of_warp(float &value, int &index) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, value, offset);
        const int at = __shfl_xor_sync(0xffffffffu, index, offset);
        better(value, index, other, at);
    }
}

#define NO_INDEX 0x7fffffff

// The best token of a part of the vocabulary, the first of equals. Grid: (parts, rows). vocab is a multiple of 8.
// best: [rows, parts], value and index side by side.
extern "C" __global__ void best_of_part(const bf16 *logits, const unsigned *seen, const unsigned *banned,
                                        const double *penalty, const double *temperature, const int *state,
                                        const int *slots, int2 *best, int vocab) {
    const int row = blockIdx.y, slot = slots[row], parts = gridDim.x;
    if (state[slot] != RUNNING || temperature[slot] > 0.0) return;
    const Row of = row_of(logits, seen, banned, (float)penalty[slot], row, slot, vocab);
    float value = NEVER;
    int index = NO_INDEX;
    for (int first = (blockIdx.x * blockDim.x + threadIdx.x) * 8; first < vocab; first += parts * blockDim.x * 8) {
        const uint4 raw = *(const uint4 *)(of.logits + first);
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float x = processed(of, first + i, (bf16)(words[i / 2] >> (i % 2 * 16)));
            better(value, index, x, first + i);
        }
    }
    best_of_warp(value, index);
    __shared__ float values[32];
    __shared__ int indices[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) {
        values[warp] = value;
        indices[warp] = index;
    }
    __syncthreads();
    if (warp > 0) return;
    const bool there = lane < blockDim.x / 32;
    value = there ? values[lane] : NEVER;
    index = there ? indices[lane] : NO_INDEX;
    best_of_warp(value, index);
    if (lane == 0) best[row * parts + blockIdx.x] = make_int2(__float_as_int(value), index);
}

// Takes the chosen tokens: `parts` candidates per row, or one of a row that is drawn. A slot whose logits are all refused
// or not numbers has failed. recent: [ring, slot_count], token `made` at made % ring. A block of 128 threads per row; it
// clears what `ban` set.
extern "C" __global__ void advance(const int2 *best, int parts, int *history, int *length, int *made, const int *limit,
                                   int *state, const int *slots, unsigned *seen, unsigned *banned, int capacity, int vocab,
                                   const int *ngram, const int *minimum, const double *temperature, const int *stops,
                                   int stop_count, int *recent, int ring, int slot_count) {
    const int row = blockIdx.x, slot = slots[row], words = (vocab + 31) / 32;
    if (state[slot] != RUNNING) return;
    int *ids = history + (long long)slot * capacity;
    if (banned != nullptr)
        ban_row(false, ids, length[slot], made[slot], banned + (long long)slot * words, ngram[slot], minimum[slot], stops,
                stop_count);
    __syncthreads();
    if (threadIdx.x >= 32) return;
    float value = NEVER;
    int id = NO_INDEX;
    const int candidates = temperature[slot] > 0.0 ? 1 : parts;
    for (int part = threadIdx.x; part < candidates; part += 32) {
        const int2 candidate = best[row * parts + part];
        better(value, id, __int_as_float(candidate.x), candidate.y);
    }
    best_of_warp(value, id);
    if (threadIdx.x > 0) return;
    if (!(value > NEVER)) {
        state[slot] = FAILED;
        return;
    }
    for (int i = 0; i < stop_count; i++) {
        if (stops[i] == id) {
            state[slot] = STOPPED;
            return;
        }
    }
    ids[length[slot]++] = id;
    recent[made[slot] % ring * slot_count + slot] = id;
    if (seen != nullptr) atomicOr(seen + (long long)slot * words + (id >> 5), 1u << (id & 31));
    if (++made[slot] >= limit[slot]) state[slot] = FULL;
}

// ---- sampling: temperature, top-k, top-p, then the inverse of the cumulative distribution ----
//
// Probabilities are integers, units of 2^-44 of the most likely token's, so that sums are exact in any order and a draw does
// not depend on how the work is split. Scores are ordered by a key: their bits, made monotonous.

#define DRAW_THREADS 1024
#define DRAW_WARPS (DRAW_THREADS / 32)
#define COPIES 8                   // of the histogram, against contention
#define UNIT 17592186044416.0f     // 2^44

__device__ __forceinline__ unsigned key_of(float x) {
    const unsigned bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 mass_of(float x, float top) { return x == NEVER ? 0 : (u64)(expf(x - top) * UNIT); }

struct Scores {
    Row row;
    float temperature;
    __device__ __forceinline__ float at(int id) const { return processed(row, id, row.logits[id]) / temperature; }
};

// Finds the smallest key whose running sum of weights, from the smallest key up, exceeds `target`; `below` gets the
// sum of all smaller keys. Weights count 1 each (COUNT), or are masses of keys of at least `least`. All threads take part.
template <bool COUNT>
__device__ unsigned select(const Scores &scores, int vocab, u64 target, float top, unsigned least, u64 &below,
                           u64 (*histogram)[256]) {
    __shared__ unsigned chosen;
    __shared__ u64 sum_below;
    unsigned prefix = 0;
    u64 before = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < COPIES * 256; i += DRAW_THREADS) histogram[i / 256][i % 256] = 0;
        __syncthreads();
        u64 *mine = histogram[threadIdx.x / 32 % COPIES];
        for (int id = threadIdx.x; id < vocab; id += DRAW_THREADS) {
            const float x = scores.at(id);
            const unsigned key = key_of(x);
            if (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8)) continue;
            if (COUNT) {
                // Most keys of a warp share a byte: one addition serves them all.
                const unsigned bin = key >> shift & 255;
                const unsigned same = __match_any_sync(__activemask(), bin);
                if (threadIdx.x % 32 == __ffs(same) - 1) atomicAdd(mine + bin, (u64)__popc(same));
            } else if (key >= least) {
                const u64 mass = mass_of(x, top);
                if (mass > 0) atomicAdd(mine + (key >> shift & 255), mass);
            }
        }
        __syncthreads();
        if (threadIdx.x < 256) {
            u64 total = 0;
            for (int copy = 0; copy < COPIES; copy++) total += histogram[copy][threadIdx.x];
            histogram[0][threadIdx.x] = total;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 running = before;
            int bin = 0;
            while (bin < 255 && running + histogram[0][bin] <= target) running += histogram[0][bin++];
            chosen = bin;
            sum_below = running;
        }
        __syncthreads();
        prefix |= chosen << shift;
        before = sum_below;
        __syncthreads();
    }
    below = before;
    return prefix;
}

__device__ __forceinline__ u64 sum_of_block(u64 x, u64 *warps) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    u64 total = 0;
    for (int warp = 0; warp < DRAW_WARPS; warp++) total += warps[warp];
    __syncthreads();
    return total;
}

// Draws a token per row. top_k: 0 is off; top_p: 1 is off. uniforms: f64 [slots, uniform_width], the draw of new token
// `made`. best: [rows, parts], of which a row fills the first. A block of 1024 threads per row.
extern "C" __global__ void __launch_bounds__(DRAW_THREADS)
    draw(const bf16 *logits, const unsigned *seen, const unsigned *banned, const double *penalties, const int *state,
         const int *slots, const int *made, const double *uniforms, int uniform_width, int2 *best, int parts, int vocab,
         const double *temperatures, const int *top_ks, const double *top_ps) {
    const int row = blockIdx.x, slot = slots[row], warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (state[slot] != RUNNING || !(temperatures[slot] > 0.0)) return;
    const int top_k = top_ks[slot];
    const double top_p = top_ps[slot];
    const float penalty = (float)penalties[slot], temperature = (float)temperatures[slot];
    const Scores scores = {row_of(logits, seen, banned, penalty, row, slot, vocab), temperature};
    __shared__ u64 histogram[COPIES][256];
    __shared__ u64 warps[DRAW_WARPS];
    __shared__ float tops[DRAW_WARPS];

    float top = NEVER;
    for (int id = threadIdx.x; id < vocab; id += DRAW_THREADS) top = fmaxf(top, scores.at(id));
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    for (int other = 0; other < DRAW_WARPS; other++) top = fmaxf(top, tops[other]);
    if (!(top > NEVER)) {
        if (threadIdx.x == 0) best[row * parts] = make_int2(__float_as_int(NEVER), NO_INDEX);
        return;
    }

    unsigned least = 0;
    u64 below = 0;
    if (top_k > 0 && top_k < vocab) least = select<true>(scores, vocab, (u64)(vocab - top_k), top, 0, below, histogram);

    // Of the tokens at key `edge`, the first `dropped` go too: they are the smallest that top-p removes.
    unsigned edge = least;
    u64 dropped = 0;
    if (top_p < 1.0) {
        u64 mass = 0;
        for (int id = threadIdx.x; id < vocab; id += DRAW_THREADS) {
            const float x = scores.at(id);
            if (key_of(x) >= least) mass += mass_of(x, top);
        }
        const u64 total = sum_of_block(mass, warps);
        const u64 cut = min((u64)((1.0 - top_p) * (double)total), total - 1);
        edge = select<false>(scores, vocab, cut, top, least, below, histogram);
        const float at_edge = __uint_as_float(edge & 0x80000000u ? edge & 0x7fffffffu : ~edge);
        const u64 each = mass_of(at_edge, top);
        dropped = each > 0 ? (cut - below) / each : 0;
    }

    // Warps own consecutive ranges, so that sums over them run in the order of the tokens.
    const int range = (vocab + DRAW_WARPS - 1) / DRAW_WARPS;
    const int begin = min(warp * range, vocab), end = min(begin + range, vocab);
    u64 ties = 0;
    if (dropped > 0) {
        for (int id = begin + lane; id < end; id += 32) ties += key_of(scores.at(id)) == edge;
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1) ties += __shfl_xor_sync(0xffffffffu, ties, offset);
        if (lane == 0) warps[warp] = ties;
        __syncthreads();
        ties = 0;
        for (int other = 0; other < warp; other++) ties += warps[other];
        __syncthreads();
    }
    const u64 ties_before = ties;
    // The mass of token `id`, the lanes of a warp going through its range together.
    const auto kept = [&](int id, u64 &rank) -> u64 {
        const float x = id < end ? scores.at(id) : NEVER;
        const unsigned key = key_of(x);
        const bool tie = id < end && key == edge && dropped > 0;
        const unsigned ballot = __ballot_sync(0xffffffffu, tie);
        const u64 my_rank = rank + __popc(ballot & ((1u << lane) - 1));
        rank += __popc(ballot);
        return id < end && key >= edge && !(tie && my_rank < dropped) ? mass_of(x, top) : 0;
    };
    u64 mass = 0, rank = ties_before;
    for (int first = begin; first < end; first += 32) mass += kept(first + lane, rank);
    const u64 total = sum_of_block(mass, warps);
    u64 before = 0;
    for (int other = 0; other < warp; other++) before += warps[other];
    const u64 own = warps[warp];
    const u64 target = (u64)(uniforms[(long long)slot * uniform_width + made[slot]] * (double)total);
    if (target < before || target >= before + own) return;
    // This warp holds the token.
    rank = ties_before;
    for (int first = begin; first < end; first += 32) {
        u64 sum = kept(first + lane, rank);
#pragma unroll
        for (int offset = 1; offset < 32; offset <<= 1) {
            const u64 other = __shfl_up_sync(0xffffffffu, sum, offset);
            if (lane >= offset) sum += other;
        }
        const unsigned past = __ballot_sync(0xffffffffu, before + sum > target);
        if (past != 0) {
            if (lane == 0) best[row * parts] = make_int2(__float_as_int(0.0f), first + __ffs(past) - 1);
            return;
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
}
