// The element-wise arithmetic of the ADMM loop, for device and host: kernels/cpu.py computes the same.
//
// Everything here is a plain function of numbers, so that tests can compile it with any C++ compiler and compare it with
// NumPy. NaN passes through: comparisons with NaN are false, and each is written so that false keeps the NaN.
#pragma once

#ifdef __CUDACC__
#define NETTRIM_FUNCTION __host__ __device__ __forceinline__
#else
#define NETTRIM_FUNCTION inline
#endif

namespace nettrim {

// min(t, v)
template <typename T>
NETTRIM_FUNCTION T below(T t, T v) {
  return t > v ? v : t;
}

// max(a, 0)
template <typename T>
NETTRIM_FUNCTION T positive(T a) {
  return a <= T(0) ? T(0) : a;
}

// Proximal operator of k |.|
template <typename T>
NETTRIM_FUNCTION T soft_threshold(T b, T k) {
  return positive(b - k) - positive(-b - k);
}

// Projection of one output: onto the ball by its shrink factor, or below its bound
template <typename T>
NETTRIM_FUNCTION T project(T t, T y, T v, bool inside, T scale) {
  return inside ? y + scale * (t - y) : below(t, v);
}

// t - alpha Proj(t), where alpha (y + g (t - y)) = alpha (1 - g) y + alpha g t
template <typename T>
NETTRIM_FUNCTION T project_relax(T t, T y, T v, bool inside, T scale, T alpha) {
  const T keep = T(1) - alpha * scale, pull = alpha * (T(1) - scale);
  return inside ? keep * t - pull * y : t - alpha * below(t, v);
}

// b - alpha soft(b, k)
template <typename T>
NETTRIM_FUNCTION T soft_relax(T b, T k, T alpha) {
  return b - alpha * soft_threshold(b, k);
}

// Factor by which a point at distance sqrt(square) of the ball's centre is pulled to it
NETTRIM_FUNCTION double shrink(double norm, double radius) {
  return norm <= radius ? 1.0 : radius / norm;
}

// Squared distance to the ball's centre
template <typename T>
NETTRIM_FUNCTION double distance(T t, T y, bool inside) {
  const double d = double(t - y);
  return inside ? d * d : 0.0;
}

// Three sums of a row, in float64
struct Sums {
  double a, b, c;
};

// <q, y> and ||q||^2 on Omega, <q, v> off it: the terms of the dual value. An infinite bound never binds: its
// multiplier is zero, and 0 * inf must not become NaN.
template <typename T>
NETTRIM_FUNCTION void add_multiplier(Sums &s, T q, T y, T v, bool inside) {
  const double value = double(q);
  if (inside) {
    s.a += value * double(y);
    s.b += value * value;
  } else if (q != T(0) && v - v == T(0)) {
    s.c += value * double(v);
  }
}

// ||z - y||^2 on Omega, squared and largest excess over v off it
template <typename T>
NETTRIM_FUNCTION void add_violation(Sums &s, T z, T y, T v, bool inside) {
  if (inside) {
    const double d = double(z - y);
    s.a += d * d;
  } else {
    const double e = positive(double(z) - double(v));
    s.b += e * e;
    s.c = e <= s.c || s.c != s.c ? s.c : e;
  }
}

// ||Proj(t) - z||^2, ||z||^2 and ||z - t||^2
template <typename T>
NETTRIM_FUNCTION void add_residual(Sums &s, T t, T z, T y, T v, bool inside, T scale) {
  const double d = double(project(t, y, v, inside, scale) - z), u = double(z - t);
  s.a += d * d;
  s.b += double(z) * double(z);
  s.c += u * u;
}

}  // namespace nettrim
