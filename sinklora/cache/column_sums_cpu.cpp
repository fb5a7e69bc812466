// How much causal attention each key received, from the log-sum-exp of a flash pass, on a processor.
//
// A task is a block of keys of one key/value head: it is transposed once, then every block of queries that
// sees it is multiplied with it, and exp(score * scale - log_sum_exp) is added up column by column. Tasks
// write different sums, so the result depends neither on their order nor on the number of threads.

#include <cmath>
#include <cstdint>
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

// Adds the columns of exp(scores * scale - log_sum_exp) of a block, each query weighted, to `total`.
template <bool weighted>
void add_columns(
    const Vector* scores,
    const float* log_sum_exp,
    const float* weights,
    int64_t queries,
    float scale,
    Vector* total) {
  Vector sums[kVectors];
  for (auto& sum : sums) sum = Vector(0.0f);
  const Vector factor(scale);
  for (int64_t at = 0; at < queries; ++at, scores += kVectors) {
    const Vector shift(-log_sum_exp[at]);
    for (int64_t part = 0; part < kVectors; ++part) {
      const Vector share = at::vec::fmadd(scores[part], factor, shift).exp_u20();
      if constexpr (weighted) {
        sums[part] = at::vec::fmadd(share, Vector(weights[at]), sums[part]);
      } else {
        sums[part] = sums[part] + share;
      }
    }
  }
  for (int64_t part = 0; part < kVectors; ++part) total[part] = total[part] + sums[part];
}

// Every other task is from the end: a thread's run of tasks then has as many long ones as short ones.
int64_t balanced(int64_t nth, int64_t blocks) {
  return nth % 2 == 0 ? nth / 2 : blocks - 1 - nth / 2;
}

template <typename Number>
void sum_columns(
    const Tensor& query,
    const Tensor& key,
    const Tensor& log_sum_exp,
    float scale,
    const float* weights,
    Tensor& sums) {
  const int64_t heads = query.size(1), length = query.size(2), size = query.size(3);
  const int64_t kv_heads = key.size(1), groups = heads / kv_heads;
  const int64_t blocks = (length + kKeys - 1) / kKeys;
  const auto* queries_data = query.const_data_ptr<Number>();
  const auto* keys_data = key.const_data_ptr<Number>();
  const auto* norms = log_sum_exp.const_data_ptr<float>();
  auto* out = sums.mutable_data_ptr<float>();

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
      std::vector<Vector> total(kVectors, Vector(0.0f));
      for (int64_t begin = first; begin < length; begin += kQueries) {
        const int64_t queries = std::min(kQueries, length - begin);
        for (int64_t head = kv_head * groups; head < (kv_head + 1) * groups; ++head) {
          at::native::cpublas::brgemm(
              queries, kKeys, size, query.stride(2), kKeys, kKeys, false,
              queries_data + row * query.stride(0) + head * query.stride(1) + begin * query.stride(2),
              packed.data(), scores_data, std::is_same_v<Number, at::BFloat16>);
          hide_future(scores_data, queries, begin, first);
          const auto* norm = norms + (row * heads + head) * length + begin;
          if (weights) {
            add_columns<true>(scores.data(), norm, weights + row * length + begin, queries, scale, total.data());
          } else {
            add_columns<false>(scores.data(), norm, nullptr, queries, scale, total.data());
          }
        }
      }
      const auto* found = reinterpret_cast<const float*>(total.data());
      std::copy(found, found + keys, out + (row * kv_heads + kv_head) * length + first);
    }
    at::native::cpublas::brgemm_release(std::is_same_v<Number, at::BFloat16>);
  });
}

// The matrix product reads rows of numbers that lie side by side.
Tensor with_rows(const Tensor& heads) {
  return heads.stride(3) == 1 && heads.stride(2) >= heads.size(3) ? heads : heads.contiguous();
}

// query [B, H, N, D], key [B, Hkv, N, D] of one dtype, log_sum_exp [B, H, N], weights [B, N] -> float32
// [B, Hkv, N]. bfloat16 is multiplied as it is where the processor has tiles for it, else as float32.
Tensor column_sums(
    const Tensor& query,
    const Tensor& key,
    const Tensor& log_sum_exp,
    double scale,
    const std::optional<Tensor>& weights) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "query and key have ", query.dim(), " and ", key.dim(),
              " dimensions, expected 4: [batch, heads, tokens, head size]");
  const int64_t batch = query.size(0), heads = query.size(1), length = query.size(2), size = query.size(3);
  TORCH_CHECK(key.size(0) == batch && key.size(2) == length && key.size(3) == size && key.size(1) > 0 &&
                  heads % key.size(1) == 0,
              "key has shape ", key.sizes(), ", which does not go with query's ", query.sizes());
  TORCH_CHECK(log_sum_exp.sizes() == query.sizes().slice(0, 3), "log_sum_exp has shape ",
              log_sum_exp.sizes(), ", expected ", query.sizes().slice(0, 3));
  TORCH_CHECK(!weights || (weights->dim() == 2 && weights->size(0) == batch && weights->size(1) == length),
              "weights has shape ", weights->sizes(), ", expected [", batch, ", ", length, "]");

  const bool tiles = query.scalar_type() == at::kBFloat16 && key.scalar_type() == at::kBFloat16 &&
      size % 2 == 0 && at::native::cpublas::could_pack(at::kBFloat16);
  const auto dtype = tiles ? at::kBFloat16 : at::kFloat;
  const Tensor queries = with_rows(query.to(dtype)), keys = with_rows(key.to(dtype));
  const Tensor norms = log_sum_exp.to(at::kFloat).contiguous();
  const Tensor counts = weights ? weights->to(at::kFloat).contiguous() : Tensor();
  const float* counted = weights ? counts.const_data_ptr<float>() : nullptr;
  Tensor sums = at::empty({batch, key.size(1), length}, norms.options());
  if (tiles) {
    sum_columns<at::BFloat16>(queries, keys, norms, static_cast<float>(scale), counted, sums);
  } else {
    sum_columns<float>(queries, keys, norms, static_cast<float>(scale), counted, sums);
  }
  return sums;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(sinklora, library) {
  library.def(
      "column_sums(Tensor query, Tensor key, Tensor log_sum_exp, float scale, Tensor? weights) -> Tensor");
  library.impl("column_sums", c10::kCPU, &column_sums);
}
