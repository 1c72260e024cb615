// Streaming log-mel spectra of many sessions: window, real DFT, magnitudes, mel bands, log.
// A block makes one mel frame of one session.
#include "../kernel.cuh"

constexpr int WINDOW = 1280, HOP = 160, BINS = WINDOW / 2 + 1, BANDS = 80;
// WINDOW = ROWS * COLUMNS: ROWS-point transforms of every COLUMNS-th sample, twiddles,
// COLUMNS-point transforms (Cooley and Tukey 1965).
constexpr int ROWS = 32, COLUMNS = 40;
constexpr int HALF_ROWS = ROWS / 2 + 1;  // the others are their conjugates: samples are real

// New samples of one session. `position` is how many came before them.
struct Session {
    const float* samples;
    i64 position;
    int count, slot;
};

struct Params {
    const Session* sessions;  // (batch,); a slot at most once
    float* ring;              // (slots, ring_length) past samples, sample n at n % ring_length
    const float* tables;      // window (1280), cos and sin of 2 pi k / 1280 (1280 each)
    const float* weights;     // mel triangles, only where they are not 0
    const int* bands;         // (80, 3) first bin, bins, where in weights
    void* out;                // (batch, frames, 80) T
    i64 out_batch, out_row;   // elements
    int ring_length;
};

constexpr int THREADS = 256;

struct Complex {
    float re, im;
};

template <class T>
DEVICE void log_mel(const Params& p) {
    SHARED float x[WINDOW];
    SHARED float cosine[WINDOW], sine[WINDOW];
    SHARED Complex part[HALF_ROWS][COLUMNS];
    SHARED float magnitude[BINS];
    const Session s = p.sessions[blockIdx.y];
    float* ring = p.ring + (i64)s.slot * p.ring_length;
    const i64 first_frame = s.position / HOP;
    const i64 frame = first_frame + blockIdx.x;
    const bool complete = frame < (s.position + s.count) / HOP;
    const i64 start = (frame + 1) * HOP - WINDOW;

    threads([&] {
        // New samples are read where they came and remembered for the next launch: no place
        // of the ring is read and written in the same launch, because it is long enough.
        for (int i = blockIdx.x * THREADS + threadIdx.x; i < s.count; i += gridDim.x * THREADS) {
            ring[(s.position + i) % p.ring_length] = s.samples[i];
        }
        if (!complete) return;
        for (int i = threadIdx.x; i < WINDOW; i += THREADS) {
            const i64 n = start + i;
            float sample = 0.0f;
            if (n >= s.position) {
                sample = s.samples[n - s.position];
            } else if (n >= 0) {
                sample = ring[n % p.ring_length];
            }
            x[i] = sample * p.tables[i];
            cosine[i] = p.tables[WINDOW + i];
            sine[i] = p.tables[2 * WINDOW + i];
        }
    });
    if (!complete) return;  // the same in all threads of the block
    barrier();
    threads([&] {
        for (int i = threadIdx.x; i < HALF_ROWS * COLUMNS; i += THREADS) {
            const int k = i / COLUMNS, n = i % COLUMNS;
            float re = 0.0f, im = 0.0f;
#pragma unroll 8
            for (int m = 0; m < ROWS; ++m) {
                const int turn = m * k % ROWS * COLUMNS;
                re += x[m * COLUMNS + n] * cosine[turn];
                im -= x[m * COLUMNS + n] * sine[turn];
            }
            const float c = cosine[n * k], t = -sine[n * k];  // n * k < 1280
            part[k][n] = {re * c - im * t, re * t + im * c};
        }
    });
    barrier();
    threads([&] {
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
            // X[r + 32 q] with r > 16 comes from its conjugate, X[1280 - bin].
            const bool mirrored = bin % ROWS >= HALF_ROWS;
            const int k = mirrored ? WINDOW - bin : bin;
            const int r = k % ROWS, q = k / ROWS;
            float re = 0.0f, im = 0.0f;
#pragma unroll 8
            for (int n = 0; n < COLUMNS; ++n) {
                const int turn = n * q % COLUMNS * ROWS;
                const Complex v = part[r][n];
                re += v.re * cosine[turn] + v.im * sine[turn];
                im += v.im * cosine[turn] - v.re * sine[turn];
            }
            magnitude[bin] = sqrtf(re * re + im * im);
        }
    });
    barrier();
    threads([&] {
        const int band = threadIdx.x;
        if (band >= BANDS) return;
        const int first = p.bands[3 * band], count = p.bands[3 * band + 1];
        const float* weight = p.weights + p.bands[3 * band + 2];
        float sum = 0.0f;
        for (int i = 0; i < count; ++i) sum += weight[i] * magnitude[first + i];
        const float level = 20.0f * log10f(fmaxf(sum, 1e-5f)) - 20.0f;
        T* out = (T*)p.out + blockIdx.y * p.out_batch + blockIdx.x * p.out_row;
        out[band] = As<T>::from(clamp((level + 100.0f) * 0.01f, 0.0f, 1.0f));
    });
}

KERNEL(log_mel_f32, Params, THREADS) { log_mel<float>(p); }
KERNEL(log_mel_f16, Params, THREADS) { log_mel<half>(p); }
