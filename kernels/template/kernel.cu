// out = a * x + y, row by row: the smallest kernel that shows everything (see __init__.py).
#include "../kernel.cuh"

struct Params {
    const void* x;  // (rows, columns) T
    const void* y;  // (rows, columns) T
    void* out;      // (rows, columns) T
    i64 x_row, y_row, out_row;  // elements from one row to the next
    int columns;
    float a;
};

constexpr int THREADS = 256;

template <class T>
DEVICE void axpy(const Params& p) {
    constexpr int N = 16 / sizeof(T);
    threads([&] {
        const int first = (blockIdx.x * THREADS + threadIdx.x) * N;
        const int count = p.columns - first;
        if (count <= 0) return;
        const T* x = (const T*)p.x + blockIdx.y * p.x_row + first;
        const T* y = (const T*)p.y + blockIdx.y * p.y_row + first;
        T* out = (T*)p.out + blockIdx.y * p.out_row + first;
        Pack<T, N> xs = load<T, N>(x, count), ys = load<T, N>(y, count), result;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            result.of[i] = As<T>::from(p.a * to_float(xs.of[i]) + to_float(ys.of[i]));
        }
        store(out, result, count);
    });
}

KERNEL(axpy_f32, Params, THREADS) { axpy<float>(p); }
KERNEL(axpy_f16, Params, THREADS) { axpy<half>(p); }
