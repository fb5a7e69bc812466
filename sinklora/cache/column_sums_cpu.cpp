// How much causal attention each key received, from the log-sum-exp of a flash pass; and the most that any
// query, with no mask, looks at it, with a pass of its own for the log-sum-exp, on a processor.
//
// A task is a block of keys of one key/value head: it is transposed once, then every block of queries that
// sees it is multiplied with it, and exp(score * scale - log_sum_exp) is folded column by column: added up,
// or its largest is found. Tasks write different columns, so the result depends neither on their order nor
// on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using Vector = at::vec::Vectorized<float>;

constexpr int64_t kKeys = 64;      // of a block: as many as a packed operand of the matrix product may hold
constexpr int64_t kQueries = 256;  // of a block: its scores stay in the second-level cache
constexpr int64_t kVectors = kKeys / Vector::size();
constexpr float kHidden = -INFINITY;

enum class Fold { kSum, kWeightedSum, kMaximum };

// What nothing folds to.
template <Fold fold>
constexpr float empty() {
  return fold == Fold::kMaximum ? -INFINITY : 0.0f;
}

// Keys [keys, size] -> [size, kKeys], zeros where there is no key.
void transpose(const float* key, int64_t stride, int64_t keys, int64_t size, float* out) {
  std::fill(out, out + size * kKeys, 0.0f);
  for (int64_t at_key = 0; at_key < keys; ++at_key) {
    for (int64_t at = 0; at < size; ++at) out[at * kKeys + at_key] = key[at_key * stride + at];
  }
}

// Keys [keys, size] -> [size / 2, kKeys, 2]: the instructions for bfloat16 multiply pairs.
void transpose(const at::BFloat16* key, int64_t stride, int64_t keys, int64_t size, at::BFloat16* out) {
  std::fill(out, out + size * kKeys, at::BFloat16(0.0f));
  for (int64_t at_key = 0; at_key < keys; ++at_key) {
    for (int64_t at = 0; at < size; ++at) out[(at / 2 * kKeys + at_key) * 2 + at % 2] = key[at_key * stride + at];
  }
}

// Query `first_query + i` does not see the keys after it.
void hide_future(float* scores, int64_t queries, int64_t first_query, int64_t first_key) {
  for (int64_t at = 0; at < queries; ++at) {
    const int64_t seen = first_query + at - first_key + 1;
    if (seen >= kKeys) return;
    std::fill(scores + at * kKeys + seen, scores + (at + 1) * kKeys, kHidden);
  }
}

// Folds the columns of a block of shares, exp(scores * scale - log_sum_exp), into `total`: sums of them, each
// query weighted or not, or maxima of their logarithms.
template <Fold fold>
void fold_columns(
    const Vector* scores,
    const float* log_sum_exp,
    const float* weights,
    int64_t queries,
    float scale,
    Vector* total) {
  Vector folded[kVectors];
  for (auto& part : folded) part = Vector(empty<fold>());
  const Vector factor(scale);
  for (int64_t at = 0; at < queries; ++at, scores += kVectors) {
    const Vector shift(-log_sum_exp[at]);
    for (int64_t part = 0; part < kVectors; ++part) {
      const Vector logarithm = at::vec::fmadd(scores[part], factor, shift);
      if constexpr (fold == Fold::kMaximum) {
        folded[part] = at::vec::maximum(folded[part], logarithm);
      } else if constexpr (fold == Fold::kWeightedSum) {
        folded[part] = at::vec::fmadd(logarithm.exp_u20(), Vector(weights[at]), folded[part]);
      } else {
        folded[part] = folded[part] + logarithm.exp_u20();
      }
    }
  }
  for (int64_t part = 0; part < kVectors; ++part) {
    total[part] =
        fold == Fold::kMaximum ? at::vec::maximum(total[part], folded[part]) : total[part] + folded[part];
  }
}

// Every other task is from the end: a thread's run of tasks then has as many long ones as short ones.
int64_t balanced(int64_t nth, int64_t blocks) {
  return nth % 2 == 0 ? nth / 2 : blocks - 1 - nth / 2;
}

// Sums are causal, of as many queries as there are keys; maxima are of all queries for every key.
template <typename Number, Fold fold>
void fold_all(
    const Tensor& query,
    const Tensor& key,
    const Tensor& log_sum_exp,
    float scale,
    const float* weights,
    Tensor& result) {
  constexpr bool causal = fold != Fold::kMaximum;
  const int64_t heads = query.size(1), asked = query.size(2), size = query.size(3);
  const int64_t kv_heads = key.size(1), groups = heads / kv_heads, length = key.size(2);
  const int64_t blocks = (length + kKeys - 1) / kKeys;
  const auto* queries_data = query.const_data_ptr<Number>();
  const auto* keys_data = key.const_data_ptr<Number>();
  const auto* norms = log_sum_exp.const_data_ptr<float>();
  auto* out = result.mutable_data_ptr<float>();

  at::parallel_for(0, query.size(0) * kv_heads * blocks, 1, [&](int64_t from, int64_t to) {
    std::vector<Number> packed(kKeys * size);
    std::vector<Vector> scores(kQueries * kVectors);
    auto* scores_data = reinterpret_cast<float*>(scores.data());
    for (int64_t task = from; task < to; ++task) {
      const int64_t row = task / blocks / kv_heads, kv_head = task / blocks % kv_heads;
      const int64_t first = balanced(task % blocks, blocks) * kKeys;
      const int64_t keys = std::min(kKeys, length - first);
      const auto* block = keys_data + row * key.stride(0) + kv_head * key.stride(1) + first * key.stride(2);
      transpose(block, key.stride(2), keys, size, packed.data());
      std::vector<Vector> total(kVectors, Vector(empty<fold>()));
      for (int64_t begin = causal ? first : 0; begin < asked; begin += kQueries) {
        const int64_t queries = std::min(kQueries, asked - begin);
        for (int64_t head = kv_head * groups; head < (kv_head + 1) * groups; ++head) {
          at::native::cpublas::brgemm(
              queries, kKeys, size, query.stride(2), kKeys, kKeys, false,
              queries_data + row * query.stride(0) + head * query.stride(1) + begin * query.stride(2),
              packed.data(), scores_data, std::is_same_v<Number, at::BFloat16>);
          if constexpr (causal) hide_future(scores_data, queries, begin, first);
          const auto* norm = norms + (row * heads + head) * asked + begin;
          const auto* counted = fold == Fold::kWeightedSum ? weights + row * asked + begin : nullptr;
          fold_columns<fold>(scores.data(), norm, counted, queries, scale, total.data());
        }
      }
      if constexpr (fold == Fold::kMaximum) {
        for (auto& part : total) part = part.exp_u20();
      }
      const auto* found = reinterpret_cast<const float*>(total.data());
      std::copy(found, found + keys, out + (row * kv_heads + kv_head) * length + first);
    }
    at::native::cpublas::brgemm_release(std::is_same_v<Number, at::BFloat16>);
  });
}

constexpr int64_t kRows = 64;     // queries whose sums a task has in hand
constexpr int64_t kBlocks = 4;  // of keys that are looked at before sums are brought to a new maximum

// exp of numbers that are not above 0, with a relative error of 3e-7; of less than -87, about 0.
inline Vector exponential(const Vector& x) {
#ifdef __AVX512F__
  // 2^n * 2^f with f in [-0.5, 0.5]; a Taylor polynomial for the second, one instruction for the first.
  const __m512 power = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(power, whole);
  __m512 value = _mm512_set1_ps(1.3333558e-3f);
  for (const float coefficient : {9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f}) {
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(coefficient));
  }
  return _mm512_scalef_ps(value, whole);
#else
  return x.exp_u20();
#endif
}

// Goes over the scores of one query in a few blocks: lane by lane the largest so far, and the sum of
// exponentials relative to it.
void add_exponentials(const Vector* scores, int64_t block, int64_t blocks, float scale, Vector& most, Vector& sum) {
  const Vector factor(scale);
  Vector largest = most;
  for (int64_t at = 0; at < blocks; ++at) {
    for (int64_t part = 0; part < kVectors; ++part) {
      largest = at::vec::maximum(largest, scores[at * block + part] * factor);
    }
  }
  Vector added = sum * exponential(most - largest);
  const Vector shift = largest.neg();
  for (int64_t at = 0; at < blocks; ++at) {
    for (int64_t part = 0; part < kVectors; ++part) {
      added = added + exponential(at::vec::fmadd(scores[at * block + part], factor, shift));
    }
  }
  most = largest;
  sum = added;
}

// The logarithm of what all lanes together have summed.
float together(const Vector& most, const Vector& sum) {
  float largest[Vector::size()], sums[Vector::size()];
  most.store(largest);
  sum.store(sums);
  const float over_all = *std::max_element(largest, largest + Vector::size());
  float total = 0.0f;
  for (int64_t lane = 0; lane < Vector::size(); ++lane) total += sums[lane] * std::exp(largest[lane] - over_all);
  return over_all + std::log(total);
}

// Every query sees every key. A task is a block of queries of one head, which goes over all packed keys.
template <typename Number>
void sum_all_exponentials(const Tensor& query, const Tensor& key, float scale, Tensor& result) {
  const int64_t heads = query.size(1), asked = query.size(2), size = query.size(3);
  const int64_t kv_heads = key.size(1), groups = heads / kv_heads, length = key.size(2);
  const int64_t blocks = (length + kKeys - 1) / kKeys, tasks = (asked + kRows - 1) / kRows;
  const auto* queries_data = query.const_data_ptr<Number>();
  const auto* keys_data = key.const_data_ptr<Number>();
  auto* out = result.mutable_data_ptr<float>();
  Tensor packed_keys = at::empty({key.size(0) * kv_heads * blocks * kKeys * size}, key.options());
  auto* packed = packed_keys.mutable_data_ptr<Number>();

  at::parallel_for(0, key.size(0) * kv_heads * blocks, 1, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t row = task / blocks / kv_heads, kv_head = task / blocks % kv_heads, first = task % blocks * kKeys;
      const auto* block = keys_data + row * key.stride(0) + kv_head * key.stride(1) + first * key.stride(2);
      transpose(block, key.stride(2), std::min(kKeys, length - first), size, packed + task * kKeys * size);
    }
  });
  at::parallel_for(0, query.size(0) * heads * tasks, 1, [&](int64_t from, int64_t to) {
    std::vector<Vector> scores(kBlocks * kRows * kVectors);
    auto* scores_data = reinterpret_cast<float*>(scores.data());
    for (int64_t task = from; task < to; ++task) {
      const int64_t row = task / tasks / heads, head = task / tasks % heads, begin = task % tasks * kRows;
      const int64_t queries = std::min(kRows, asked - begin);
      const auto* mine = queries_data + row * query.stride(0) + head * query.stride(1) + begin * query.stride(2);
      std::vector<Vector> most(queries, Vector(std::numeric_limits<float>::lowest())), sum(queries, Vector(0.0f));
      for (int64_t block = 0; block < blocks; block += kBlocks) {
        const int64_t at_once = std::min(kBlocks, blocks - block);
        for (int64_t at = 0; at < at_once; ++at) {
          auto* found = scores_data + at * kRows * kKeys;
          at::native::cpublas::brgemm(
              queries, kKeys, size, query.stride(2), kKeys, kKeys, false, mine,
              packed + ((row * kv_heads + head / groups) * blocks + block + at) * kKeys * size, found,
              std::is_same_v<Number, at::BFloat16>);
          const int64_t keys = std::min(kKeys, length - (block + at) * kKeys);
          if (keys < kKeys) {
            for (int64_t i = 0; i < queries; ++i) std::fill(found + i * kKeys + keys, found + (i + 1) * kKeys, kHidden);
          }
        }
        for (int64_t i = 0; i < queries; ++i) {
          add_exponentials(scores.data() + i * kVectors, kRows * kVectors, at_once, scale, most[i], sum[i]);
        }
      }
      auto* logarithms = out + (row * heads + head) * asked + begin;
      for (int64_t i = 0; i < queries; ++i) logarithms[i] = together(most[i], sum[i]);
    }
    at::native::cpublas::brgemm_release(std::is_same_v<Number, at::BFloat16>);
  });
}

// The matrix product reads rows of numbers that lie side by side.
Tensor with_rows(const Tensor& heads) {
  return heads.stride(3) == 1 && heads.stride(2) >= heads.size(3) ? heads : heads.contiguous();
}

void check(const Tensor& query, const Tensor& key, bool causal) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "query and key have ", query.dim(), " and ", key.dim(),
              " dimensions, expected 4: [batch, heads, tokens, head size]");
  TORCH_CHECK(key.size(0) == query.size(0) && (!causal || key.size(2) == query.size(2)) &&
                  key.size(3) == query.size(3) && key.size(1) > 0 && query.size(1) % key.size(1) == 0,
              "key has shape ", key.sizes(), ", which does not go with query's ", query.sizes());
}

void check(const Tensor& query, const Tensor& key, const Tensor& log_sum_exp, bool causal) {
  check(query, key, causal);
  TORCH_CHECK(log_sum_exp.sizes() == query.sizes().slice(0, 3), "log_sum_exp has shape ",
              log_sum_exp.sizes(), ", expected ", query.sizes().slice(0, 3));
}

// Whether bfloat16 can be multiplied as it is: by tiles, or by pairs in vectors, of which oneDNN says by an
// error that it may not.
bool multiplies_pairs() {
  if (at::native::cpublas::could_pack(at::kBFloat16)) return true;
  if (!__builtin_cpu_supports("avx512bf16")) return false;
  const std::vector<at::BFloat16> row(2, at::BFloat16(1.0f)), columns(2 * kKeys, at::BFloat16(1.0f));
  std::vector<float> product(kKeys);
  try {
    at::native::cpublas::brgemm(1, kKeys, 2, 2, kKeys, kKeys, false, row.data(), columns.data(), product.data(), true);
    at::native::cpublas::brgemm_release(true);
  } catch (const c10::Error&) {
    return false;
  }
  return true;
}

// What everything else is multiplied as is float32.
at::ScalarType multiplied(const Tensor& query, const Tensor& key) {
  const bool pairs = query.scalar_type() == at::kBFloat16 && key.scalar_type() == at::kBFloat16 &&
      query.size(3) % 2 == 0;
  return pairs && multiplies_pairs() ? at::kBFloat16 : at::kFloat;
}

template <Fold fold>
Tensor folded(
    const Tensor& query, const Tensor& key, const Tensor& log_sum_exp, double scale, const float* weights) {
  const auto dtype = multiplied(query, key);
  const Tensor queries = with_rows(query.to(dtype)), keys = with_rows(key.to(dtype));
  const Tensor norms = log_sum_exp.to(at::kFloat).contiguous();
  Tensor result = at::empty({key.size(0), key.size(1), key.size(2)}, norms.options());
  if (dtype == at::kBFloat16) {
    fold_all<at::BFloat16, fold>(queries, keys, norms, static_cast<float>(scale), weights, result);
  } else {
    fold_all<float, fold>(queries, keys, norms, static_cast<float>(scale), weights, result);
  }
  return result;
}

// query [B, H, N, D], key [B, Hkv, N, D] of one dtype, log_sum_exp [B, H, N], weights [B, N] -> float32
// [B, Hkv, N].
Tensor column_sums(
    const Tensor& query,
    const Tensor& key,
    const Tensor& log_sum_exp,
    double scale,
    const std::optional<Tensor>& weights) {
  check(query, key, log_sum_exp, true);
  if (!weights) return folded<Fold::kSum>(query, key, log_sum_exp, scale, nullptr);
  const int64_t batch = query.size(0), length = query.size(2);
  TORCH_CHECK(weights->dim() == 2 && weights->size(0) == batch && weights->size(1) == length,
              "weights has shape ", weights->sizes(), ", expected [", batch, ", ", length, "]");
  const Tensor counts = weights->to(at::kFloat).contiguous();
  return folded<Fold::kWeightedSum>(query, key, log_sum_exp, scale, counts.const_data_ptr<float>());
}

// query [B, H, Q, D], key [B, Hkv, L, D] of one dtype -> float32 [B, H, Q].
Tensor log_sum_exp(const Tensor& query, const Tensor& key, double scale) {
  check(query, key, false);
  const auto dtype = multiplied(query, key);
  const Tensor queries = with_rows(query.to(dtype)), keys = with_rows(key.to(dtype));
  Tensor result = at::empty({query.size(0), query.size(1), query.size(2)}, query.options().dtype(at::kFloat));
  if (dtype == at::kBFloat16) {
    sum_all_exponentials<at::BFloat16>(queries, keys, static_cast<float>(scale), result);
  } else {
    sum_all_exponentials<float>(queries, keys, static_cast<float>(scale), result);
  }
  return result;
}

// query [B, H, Q, D], key [B, Hkv, L, D] of one dtype, log_sum_exp [B, H, Q] -> float32 [B, Hkv, L].
Tensor column_maxima(const Tensor& query, const Tensor& key, const Tensor& log_sum_exp, double scale) {
  check(query, key, log_sum_exp, false);
  return folded<Fold::kMaximum>(query, key, log_sum_exp, scale, nullptr);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(sinklora, library) {
  library.def(
      "column_sums(Tensor query, Tensor key, Tensor log_sum_exp, float scale, Tensor? weights) -> Tensor");
  library.impl("column_sums", c10::kCPU, &column_sums);
  library.def("log_sum_exp(Tensor query, Tensor key, float scale) -> Tensor");
  library.impl("log_sum_exp", c10::kCPU, &log_sum_exp);
  library.def("column_maxima(Tensor query, Tensor key, Tensor log_sum_exp, float scale) -> Tensor");
  library.impl("column_maxima", c10::kCPU, &column_maxima);
}
