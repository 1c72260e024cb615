// Trailing means of many sessions' expression codes: every code goes into its session's ring
// and the mean of the ring comes out, in one launch.
#include "../kernel.cuh"

// Which session's ring, and whether to forget it first.
struct Session {
    int slot;
    int reset;
};

struct Params {
    const Session* sessions;  // (batch,); a slot at most once
    const void* code;         // (batch, dim) T
    void* mean;               // (batch, dim) T
    float* ring;              // (slots, length, dim)
    u32* pushed;              // (slots,) codes since the last reset
    i64 code_row, mean_row;   // elements
    int length, dim;
};

constexpr int THREADS = 64;

template <class T>
DEVICE void window_mean(const Params& p) {
    const Session s = p.sessions[blockIdx.x];
    threads([&] {
        const u32 before = s.reset ? 0u : p.pushed[s.slot];
        const int next = (int)(before % (u32)p.length);
        const int count = before < (u32)p.length ? (int)before + 1 : p.length;
        float* ring = p.ring + (i64)s.slot * p.length * p.dim;
        for (int d = threadIdx.x; d < p.dim; d += THREADS) {
            const float code = to_float(((const T*)p.code)[blockIdx.x * p.code_row + d]);
            ring[next * p.dim + d] = code;
            // The sum is made anew every time: a window is short, and nothing can drift.
            double sum = 0.0;
            for (int i = 0; i < count; ++i) sum += (double)ring[i * p.dim + d];
            ((T*)p.mean)[blockIdx.x * p.mean_row + d] = As<T>::from((float)(sum / count));
        }
    });
    barrier();
    threads([&] {
        if (threadIdx.x != 0) return;
        // Past 2^31 only the place in the ring matters, so the counter may step back.
        const u32 after = (s.reset ? 0u : p.pushed[s.slot]) + 1u;
        p.pushed[s.slot] = after < 0x80000000u ? after : after % (u32)p.length + (u32)p.length;
    });
}

KERNEL(window_mean_f32, Params, THREADS) { window_mean<float>(p); }
KERNEL(window_mean_f16, Params, THREADS) { window_mean<half>(p); }
