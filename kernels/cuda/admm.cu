// The kernels of the ADMM loop. Arrays are row-major: T, Z, Q, Y are M x P, the mask a byte an entry, V is M x P or one
// number; a row is a neuron.
//
// Every M x P array is streamed once, WIDTH entries (16 bytes) at a time where rows allow it. blockIdx.y and its stride
// run over rows, blockIdx.x over pieces of a row. Sums are in float64 and deterministic: each block writes its partial
// sum, and a second kernel adds those of a row in order.
#include "prox.cuh"

using nettrim::Sums;

namespace {

template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Pack {
  T value[WIDTH];
};

template <int WIDTH, typename T>
__device__ Pack<T, WIDTH> load(const T *from) {
  return *reinterpret_cast<const Pack<T, WIDTH> *>(from);
}

template <int WIDTH, typename T>
__device__ void store(T *to, const Pack<T, WIDTH> &pack) {
  *reinterpret_cast<Pack<T, WIDTH> *>(to) = pack;
}

// Bounds of a row: one number for all, or a row of their own
template <typename T, int WIDTH>
struct Bounds {
  const T *row;
  T constant;

  __device__ Bounds(const T *upper, int is_constant, long long start)
      : row(is_constant ? nullptr : upper + start), constant(is_constant ? upper[0] : T(0)) {}

  __device__ Pack<T, WIDTH> at(long long i) const {
    if (row) return load<WIDTH>(row + i);
    Pack<T, WIDTH> pack;
    for (int j = 0; j < WIDTH; ++j) pack.value[j] = constant;
    return pack;
  }
};

// NaN stays, whichever it is
__device__ double larger(double a, double b) { return b <= a || a != a ? a : b; }

// Over the threads of a block, to thread 0: sums of a and b, sum or maximum of c. The order depends on blockDim only.
__device__ Sums reduce(Sums s, bool largest) {
  __shared__ Sums shared[32];
  for (int offset = 16; offset > 0 && blockDim.x > 1; offset /= 2) {
    s.a += __shfl_down_sync(0xffffffffu, s.a, offset);
    s.b += __shfl_down_sync(0xffffffffu, s.b, offset);
    const double c = __shfl_down_sync(0xffffffffu, s.c, offset);
    s.c = largest ? larger(s.c, c) : s.c + c;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < (blockDim.x + 31) / 32; ++w) {
      s.a += shared[w].a;
      s.b += shared[w].b;
      s.c = largest ? larger(s.c, shared[w].c) : s.c + shared[w].c;
    }
  }
  return s;
}

template <int WIDTH>
__device__ long long first() {
  return (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
}

template <int WIDTH>
__device__ long long stride() {
  return static_cast<long long>(gridDim.x) * blockDim.x * WIDTH;
}

// partial[m, block] = sum over Omega of (T - Y)^2
template <typename T, int WIDTH>
__device__ void ball_norms(const T *t, const T *y, const unsigned char *mask, double *partial, long long M,
                           long long P) {
  for (long long m = blockIdx.y; m < M; m += gridDim.y) {
    Sums s = {0, 0, 0};
    for (long long i = first<WIDTH>(); i < P; i += stride<WIDTH>()) {
      const auto a = load<WIDTH>(t + m * P + i), b = load<WIDTH>(y + m * P + i);
      const auto inside = load<WIDTH>(mask + m * P + i);
      for (int j = 0; j < WIDTH; ++j) s.a += nettrim::distance(a.value[j], b.value[j], inside.value[j] != 0);
    }
    s = reduce(s, false);
    if (threadIdx.x == 0) partial[m * gridDim.x + blockIdx.x] = s.a;
  }
}

// In place t <- t - alpha Proj(t)
template <typename T, int WIDTH>
__device__ void project_relax(T *t, const T *y, const unsigned char *mask, const T *upper, int constant, const T *scale,
                              T alpha, long long M, long long P) {
  for (long long m = blockIdx.y; m < M; m += gridDim.y) {
    const Bounds<T, WIDTH> bounds(upper, constant, m * P);
    const T g = scale[m];
    for (long long i = first<WIDTH>(); i < P; i += stride<WIDTH>()) {
      auto a = load<WIDTH>(t + m * P + i);
      const auto b = load<WIDTH>(y + m * P + i), v = bounds.at(i);
      const auto inside = load<WIDTH>(mask + m * P + i);
      for (int j = 0; j < WIDTH; ++j)
        a.value[j] = nettrim::project_relax(a.value[j], b.value[j], v.value[j], inside.value[j] != 0, g, alpha);
      store<WIDTH>(t + m * P + i, a);
    }
  }
}

// partial[m, block, 3] of one of the sums of prox.cuh
template <typename T, int WIDTH, typename Add>
__device__ void row_sums(const T *x, const T *y, const unsigned char *mask, const T *upper, int constant,
                         double *partial, long long M, long long P, bool largest, Add add) {
  for (long long m = blockIdx.y; m < M; m += gridDim.y) {
    const Bounds<T, WIDTH> bounds(upper, constant, m * P);
    Sums s = {0, 0, 0};
    for (long long i = first<WIDTH>(); i < P; i += stride<WIDTH>()) {
      const auto a = load<WIDTH>(x + m * P + i), b = load<WIDTH>(y + m * P + i), v = bounds.at(i);
      const auto inside = load<WIDTH>(mask + m * P + i);
      for (int j = 0; j < WIDTH; ++j) add(s, m, i + j, a.value[j], b.value[j], v.value[j], inside.value[j] != 0);
    }
    s = reduce(s, largest);
    if (threadIdx.x == 0) {
      double *out = partial + (m * gridDim.x + blockIdx.x) * 3;
      out[0] = s.a;
      out[1] = s.b;
      out[2] = s.c;
    }
  }
}

}  // namespace

#define NETTRIM_ROWS(NAME, T, WIDTH)                                                                                   \
  extern "C" __global__ void ball_norms_##NAME(const T *t, const T *y, const unsigned char *mask, double *partial,     \
                                               long long M, long long P) {                                            \
    ball_norms<T, WIDTH>(t, y, mask, partial, M, P);                                                                   \
  }                                                                                                                    \
  extern "C" __global__ void project_relax_##NAME(T *t, const T *y, const unsigned char *mask, const T *upper,         \
                                                  int constant, const T *scale, T alpha, long long M, long long P) {   \
    project_relax<T, WIDTH>(t, y, mask, upper, constant, scale, alpha, M, P);                                          \
  }                                                                                                                    \
  extern "C" __global__ void multiplier_sums_##NAME(const T *q, const T *y, const unsigned char *mask, const T *upper, \
                                                    int constant, double *partial, long long M, long long P) {         \
    row_sums<T, WIDTH>(q, y, mask, upper, constant, partial, M, P, false,                                              \
                       [](Sums &s, long long, long long, T a, T b, T v, bool inside) {                                 \
                         nettrim::add_multiplier(s, a, b, v, inside);                                                  \
                       });                                                                                             \
  }                                                                                                                    \
  extern "C" __global__ void violation_sums_##NAME(const T *z, const T *y, const unsigned char *mask, const T *upper,  \
                                                   int constant, double *partial, long long M, long long P) {          \
    row_sums<T, WIDTH>(z, y, mask, upper, constant, partial, M, P, true,                                               \
                       [](Sums &s, long long, long long, T a, T b, T v, bool inside) {                                 \
                         nettrim::add_violation(s, a, b, v, inside);                                                   \
                       });                                                                                             \
  }                                                                                                                    \
  extern "C" __global__ void residual_sums_##NAME(const T *t, const T *z, const T *y, const unsigned char *mask,       \
                                                  const T *upper, int constant, const T *scale, double *partial,       \
                                                  long long M, long long P) {                                          \
    row_sums<T, WIDTH>(t, y, mask, upper, constant, partial, M, P, false,                                              \
                       [z, scale, P](Sums &s, long long m, long long i, T a, T b, T v, bool inside) {                  \
                         nettrim::add_residual(s, a, z[m * P + i], b, v, inside, scale[m]);                            \
                       });                                                                                             \
  }

// float32 and float64, in packs of 16 bytes, and one at a time for rows that are not aligned to that
NETTRIM_ROWS(float_4, float, 4)
NETTRIM_ROWS(float_1, float, 1)
NETTRIM_ROWS(double_2, double, 2)
NETTRIM_ROWS(double_1, double, 1)

// out[m, j] = sum over blocks of partial[m, block, j], in order; the last column's maximum if `largest`
extern "C" __global__ void collect(const double *partial, int blocks, int columns, int largest, double *out,
                                   long long M) {
  const long long total = M * columns, step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long k = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; k < total; k += step) {
    const long long m = k / columns, j = k % columns;
    double sum = 0;
    for (int b = 0; b < blocks; ++b) {
      const double value = partial[(m * blocks + b) * columns + j];
      sum = largest && j == columns - 1 ? larger(sum, value) : sum + value;
    }
    out[k] = sum;
  }
}

// Shrink factors of the rows, from their squared distances: one block; one ball for all rows, or each row's own
#define NETTRIM_SCALE(NAME, T)                                                                                         \
  extern "C" __global__ void shrink_##NAME(const double *squares, const double *radii, int common, T *scale,       \
                                               long long M) {                                                          \
    __shared__ double norm;                                                                                            \
    if (common) {                                                                                                      \
      Sums s = {0, 0, 0};                                                                                              \
      for (long long m = threadIdx.x; m < M; m += blockDim.x) s.a += squares[m];                                       \
      s = reduce(s, false);                                                                                            \
      if (threadIdx.x == 0) norm = sqrt(s.a);                                                                          \
      __syncthreads();                                                                                                 \
    }                                                                                                                  \
    for (long long m = threadIdx.x; m < M; m += blockDim.x)                                                            \
      scale[m] = T(nettrim::shrink(common ? norm : sqrt(squares[m]), radii[common ? 0 : m]));                          \
  }

NETTRIM_SCALE(float, float)
NETTRIM_SCALE(double, double)

// In place b <- b - alpha soft(b, c) for N x M; c is N x M, N x 1 or 1 x 1, whose steps are 0 where it is repeated
#define NETTRIM_SOFT(NAME, T)                                                                                          \
  extern "C" __global__ void soft_relax_##NAME(T *b, const T *c, long long row_step, long long column_step, T alpha,   \
                                               long long N, long long M) {                                             \
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;                                             \
    for (long long k = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; k < N * M; k += step)            \
      b[k] = nettrim::soft_relax(b[k], c[(k / M) * row_step + (k % M) * column_step], alpha);                          \
  }

NETTRIM_SOFT(float, float)
NETTRIM_SOFT(double, double)
