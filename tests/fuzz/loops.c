// The operator in plain loops, forward and backward, in double, and how far a kernel may be off.
//
// Written from the definition alone; nothing is shared with the package. A kernel computes in the
// accumulation type, whose unit roundoff is `u`, and stores, and may multiply weights, in a dtype
// whose unit roundoff is `stored` (0 where it is that of the accumulation type). Each result comes
// with a bound of the error that this explains to first order, element by element.
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ZEROS, MASKED, SHIFTED };
enum { OFF_MAP = -1, NO_TAP = -2 };

typedef struct {
  long batch, height, width, heads, key_dim, value_dim;
  long kernel[2], mode, causal[2], by_distance;
  double scale, u, stored, smallest;
} Problem;

// What tap `tap` of the window of pixel `here` reads along an axis: a pixel, OFF_MAP or NO_TAP.
// `place` is where its bias stands.
static long source(const Problem* p, int axis, long dilation, long here, long tap, long* place) {
  const long length = axis == 0 ? p->height : p->width, size = p->kernel[axis];
  if (p->mode == SHIFTED) {
    const long phase = here % dilation, own = here / dilation;
    const long pixels = (length - phase + dilation - 1) / dilation;
    long first = own - size / 2;
    if (first > pixels - size) first = pixels - size;
    if (first < 0) first = 0;
    if (p->causal[axis]) first = own - (size - 1);
    const long index = first + tap;
    *place = index - own + size - 1;
    return index < 0 || index >= pixels ? NO_TAP : phase + index * dilation;
  }
  *place = p->by_distance ? tap - size / 2 + size - 1 : tap;
  if (p->causal[axis] && tap > size / 2) return NO_TAP;
  const long pixel = here + (tap - size / 2) * dilation;
  if (pixel >= 0 && pixel < length) return pixel;
  return p->mode == ZEROS ? OFF_MAP : NO_TAP;
}

// Tensors are contiguous: (batch, height, width, heads, dim), bias (heads, rows, columns), dilation
// (heads, 2). bias, mask, d_out and d_lse may be NULL. `results` and `bounds`: out, lse, and the
// gradients of query, key, value and bias, all zero at first.
void attend(const Problem* p, const long* dilation, const double* query, const double* key,
            const double* value, const double* bias, const unsigned char* mask, const double* d_out,
            const double* d_lse, double** results, double** bounds) {
  const long D = p->key_dim, E = p->value_dim, taps = p->kernel[0] * p->kernel[1];
  const long pixels = p->height * p->width, queries = p->batch * pixels * p->heads;
  const long rows = p->by_distance ? 2 * p->kernel[0] - 1 : p->kernel[0];
  const long columns = p->by_distance ? 2 * p->kernel[1] - 1 : p->kernel[1];
  const double u = p->u, stored = p->stored, scale = p->scale;
  long* at = malloc(taps * sizeof *at);  // key row of a tap, or OFF_MAP
  long* biased = malloc(taps * sizeof *at);
  double* score = malloc(taps * sizeof *score);
  double* error = malloc(taps * sizeof *error);

  for (long n = 0; n < queries; ++n) {
    const long head = n % p->heads, pixel = n / p->heads % pixels;
    const long image = n / p->heads / pixels, y = pixel / p->width, x = pixel % p->width;
    const double* q = query + n * D;
    double *out = results[0] + n * E, *out_bound = bounds[0] + n * E;

    long count = 0;
    double largest = -INFINITY;
    int nan = 0;
    for (long i = 0; i < p->kernel[0]; ++i) {
      for (long j = 0; j < p->kernel[1]; ++j) {
        long place_y, place_x;
        const long row = source(p, 0, dilation[2 * head], y, i, &place_y);
        const long column = source(p, 1, dilation[2 * head + 1], x, j, &place_x);
        if (row == NO_TAP || column == NO_TAP) continue;
        const int on_map = row != OFF_MAP && column != OFF_MAP;
        const long position = (image * p->height + row) * p->width + column;
        if (on_map && mask && !mask[position]) continue;
        const long place = (head * rows + place_y) * columns + place_x;
        const long k = on_map ? position * p->heads + head : OFF_MAP;
        double dot = 0, size = 0;
        for (long c = 0; on_map && c < D; ++c) {
          dot += q[c] * key[k * D + c];
          size += fabs(q[c] * key[k * D + c]);
        }
        const double added = bias ? bias[place] : 0;
        const double s = (on_map ? scale * dot : 0) + added;
        if (s == -INFINITY) continue;
        nan |= isnan(s) || s == INFINITY;
        at[count] = k;
        biased[count] = place;
        score[count] = s;
        error[count] = (D + 4) * u * (fabs(scale) * size + fabs(added));
        largest = fmax(largest, s);
        ++count;
      }
    }
    if (count == 0) {
      results[1][n] = -INFINITY;
      continue;
    }
    if (nan) largest = NAN;

    double sum = 0;
    for (long t = 0; t < count; ++t) sum += exp(score[t] - largest);
    const double lse = largest + log(sum);
    double lse_bound = (count + 16) * u + 2 * u * fabs(lse);
    for (long t = 0; t < count; ++t) lse_bound += exp(score[t] - lse) * error[t];
    results[1][n] = lse;
    bounds[1][n] = lse_bound;

    // From here on `score` holds weights, and `error` how far these may be off.
    for (long t = 0; t < count; ++t) {
      const double below = largest - score[t];
      const double relative = error[t] + lse_bound + u * (4 * below + count + 16) + stored;
      score[t] = exp(score[t] - lse);
      error[t] = score[t] * expm1(fmin(relative, 100)) + p->smallest;
      for (long c = 0; at[t] != OFF_MAP && c < E; ++c) {
        const double v = value[at[t] * E + c];
        out[c] += score[t] * v;
        out_bound[c] += (error[t] + count * u * score[t]) * fabs(v);
      }
    }
    for (long c = 0; c < E; ++c) out_bound[c] += (u + stored) * fabs(out[c]);
    if (!d_out && !d_lse) continue;

    double delta = 0, delta_bound = 0;
    for (long c = 0; d_out && c < E; ++c) {
      const double d = d_out[n * E + c];
      delta += d * out[c];
      delta_bound += fabs(d) * (out_bound[c] + (E + 2) * u * fabs(out[c]));
    }
    const double d_own = d_lse ? d_lse[n] : 0;
    for (long t = 0; t < count; ++t) {
      const long k = at[t];
      double along = 0, size = 0;
      for (long c = 0; d_out && k != OFF_MAP && c < E; ++c) {
        const double product = d_out[n * E + c] * value[k * E + c];
        along += product;
        size += fabs(product);
      }
      const double slope = along - delta + d_own;
      const double d_score = score[t] * slope;
      const double off = error[t] * fabs(slope) + stored * fabs(d_score) +
                         (score[t] + p->smallest) * ((E + 4) * u * size + delta_bound +
                                                     4 * u * (fabs(delta) + fabs(d_own)));
      const double off_summed = off + (2 * taps + 16) * u * fabs(d_score);
      if (bias) {
        results[5][biased[t]] += d_score;
        bounds[5][biased[t]] += off + queries * u * fabs(d_score);
      }
      if (k == OFF_MAP) continue;
      for (long c = 0; c < D; ++c) {
        results[2][n * D + c] += scale * d_score * key[k * D + c];
        bounds[2][n * D + c] += fabs(scale * key[k * D + c]) * off_summed;
        results[3][k * D + c] += scale * d_score * q[c];
        bounds[3][k * D + c] += fabs(scale * q[c]) * off_summed;
      }
      for (long c = 0; d_out && c < E; ++c) {
        results[4][k * E + c] += score[t] * d_out[n * E + c];
        bounds[4][k * E + c] +=
            (error[t] + (2 * taps + 16) * u * score[t]) * fabs(d_out[n * E + c]);
      }
    }
  }
  free(at);
  free(biased);
  free(score);
  free(error);
}
