// Gradients of causal attention in bfloat16 on a processor with tiles, from the log-sum-exp of a flash pass.
//
// A task is every other block of keys of one head, or all of them. Scores are kept transposed, keys by queries,
// because three of the five products then take them as they are, and the fourth (queries) in pairs of keys, as
// the instructions want their second operand. Tasks write different sums, so that the result depends neither on
// their order nor on the number of threads.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace {

using at::BFloat16;
using at::Tensor;
using at::native::cpublas::brgemm;
using Vector = at::vec::Vectorized<float>;

constexpr int64_t kPanel = 64;     // columns of a packed operand: as many as it may have
constexpr int64_t kKeys = 128;     // of a block
constexpr int64_t kQueries = 256;  // of a block: its scores stay in the second-level cache
constexpr int64_t kTasks = 16;     // at least: rows of few heads are divided further

constexpr int64_t rounded_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

uint32_t rounded_bits(float number) {
  const uint32_t bits = std::bit_cast<uint32_t>(number);
  return bits + 0x7fff + ((bits >> 16) & 1);
}

BFloat16 rounded(float number) { return BFloat16(uint16_t(rounded_bits(number) >> 16), BFloat16::from_bits()); }

// One head of a tensor [B, H, N, D].
struct Head {
  const BFloat16* data;
  int64_t row;    // from token to token
  int64_t tokens;
  int64_t size;
};

Head head_of(const Tensor& x, int64_t batch, int64_t head) {
  const auto* data = x.const_data_ptr<BFloat16>() + batch * x.stride(0) + head * x.stride(1);
  return {data, x.stride(2), x.size(2), x.size(3)};
}

// As a first operand: [tokens][size], the head size padded with zeros.
void pack_rows(const Head& x, int64_t size, BFloat16* out) {
  for (int64_t token = 0; token < x.tokens; ++token) {
    std::copy_n(x.data + token * x.row, x.size, out + token * size);
  }
}

// Rows as a second operand that is multiplied over the head size: [panel of tokens][size / 2][kPanel][2].
void pack_over_size(const BFloat16* rows, int64_t tokens, int64_t size, BFloat16* out) {
  for (int64_t panel = 0; panel < tokens; panel += kPanel) {
    const auto* from = reinterpret_cast<const uint32_t*>(rows + panel * size);
    auto* to = reinterpret_cast<uint32_t*>(out + panel * size);
    for (int64_t pair = 0; pair < size / 2; ++pair) {
      for (int64_t token = 0; token < kPanel; ++token) to[pair * kPanel + token] = from[token * size / 2 + pair];
    }
  }
}

// Rows as a second operand that is multiplied over tokens: [panel of the head size][tokens / 2][width][2].
void pack_over_tokens(const BFloat16* rows, int64_t tokens, int64_t size, int64_t width, BFloat16* out) {
  const auto* from = reinterpret_cast<const uint16_t*>(rows);
  auto* to = reinterpret_cast<uint32_t*>(out);
  for (int64_t panel = 0; panel < size; panel += width) {
    for (int64_t token = 0; token < tokens; token += 2, to += width) {
      const uint16_t* first = from + token * size + panel;
      for (int64_t at = 0; at < width; ++at) to[at] = first[at] | uint32_t(first[at + size]) << 16;
    }
  }
}

// Rows as a first operand that is multiplied over tokens, block by block: [block of tokens][size][kKeys].
void pack_transposed(const BFloat16* rows, int64_t tokens, int64_t size, BFloat16* out) {
  for (int64_t block = 0; block < tokens; block += kKeys) {
    for (int64_t at = 0; at < size; ++at) {
      for (int64_t token = 0; token < kKeys; ++token) {
        out[block * size + at * kKeys + token] = rows[(block + token) * size + at];
      }
    }
  }
}

// What a task holds: its head's operands and the scores of one block.
struct Workspace {
  int64_t size, width, queries, keys;  // of the operands, padded with zeros
  std::vector<BFloat16> query_over_size, query_over_tokens, upstream_over_size, upstream_over_tokens;
  std::vector<BFloat16> rows, key_rows, key_transposed, value_rows;
  std::vector<float> log_sum_exp, delta;  // of every query; infinite and zero where there is none
  std::vector<BFloat16> weights, to_scores, to_scores_paired;
  std::vector<float> scores, to_weights, to_query, to_key, to_value;

  Workspace(int64_t tokens, int64_t head_size)
      : size(rounded_up(head_size, 32)),
        width(size % kPanel ? 32 : kPanel),
        queries(rounded_up(tokens, kQueries)),
        keys(rounded_up(tokens, kKeys)) {
    for (auto* x : {&rows, &query_over_size, &query_over_tokens, &upstream_over_size, &upstream_over_tokens}) {
      x->resize(queries * size);
    }
    for (auto* x : {&key_rows, &key_transposed, &value_rows}) x->resize(keys * size);
    for (auto* x : {&weights, &to_scores, &to_scores_paired}) x->resize(kKeys * kQueries);
    for (auto* x : {&scores, &to_weights}) x->resize(kKeys * kPanel);
    for (auto* x : {&to_key, &to_value}) x->resize(kKeys * size);
    log_sum_exp.resize(queries);
    delta.resize(queries);
    to_query.resize(queries * size);
  }

  void load(const Head& query, const Head& key, const Head& value, const Head& output, const Head& upstream,
            const float* norms) {
    pack_rows(query, size, rows.data());
    pack_over_size(rows.data(), queries, size, query_over_size.data());
    pack_over_tokens(rows.data(), queries, size, width, query_over_tokens.data());
    pack_rows(upstream, size, rows.data());
    pack_over_size(rows.data(), queries, size, upstream_over_size.data());
    pack_over_tokens(rows.data(), queries, size, width, upstream_over_tokens.data());
    pack_rows(key, size, key_rows.data());
    pack_transposed(key_rows.data(), keys, size, key_transposed.data());
    pack_rows(value, size, value_rows.data());
    std::fill(log_sum_exp.begin(), log_sum_exp.end(), INFINITY);
    std::fill(delta.begin(), delta.end(), 0.0f);
    std::copy_n(norms, query.tokens, log_sum_exp.begin());
    for (int64_t token = 0; token < query.tokens; ++token) {
      float total = 0;
      for (int64_t at = 0; at < query.size; ++at) {
        total += float(output.data[token * output.row + at]) * float(upstream.data[token * upstream.row + at]);
      }
      delta[token] = total;
    }
    std::fill(to_query.begin(), to_query.end(), 0.0f);
  }
};

// Attention weights and gradients of the scores, for one panel of queries: the columns `column`.. of the block.
void panel_gradients(Workspace& w, int64_t first_key, int64_t first_query, int64_t column, float scale) {
  const Vector factor(scale);
  alignas(64) float shares[2][kPanel], gradients[2][kPanel];
  const float* norm = w.log_sum_exp.data() + first_query;
  const float* delta = w.delta.data() + first_query;
  BFloat16* paired = w.to_scores_paired.data() + column * kKeys;
  for (int64_t pair = 0; pair < kKeys; pair += 2) {
    for (int64_t nth = 0; nth < 2; ++nth) {
      const int64_t key = pair + nth;
      const float* scores = w.scores.data() + key * kPanel;
      const float* to_weights = w.to_weights.data() + key * kPanel;
      for (int64_t at = 0; at < kPanel; at += Vector::size()) {
        const auto shift = Vector::loadu(norm + at).neg();
        at::vec::fmadd(Vector::loadu(scores + at), factor, shift).exp_u20().store(shares[nth] + at);
      }
      const int64_t hidden = std::clamp<int64_t>(first_key + key - first_query, 0, kPanel);
      std::fill(shares[nth], shares[nth] + hidden, 0.0f);
      BFloat16* weights_row = w.weights.data() + key * kQueries + column;
      BFloat16* to_scores_row = w.to_scores.data() + key * kQueries + column;
      for (int64_t at = 0; at < kPanel; ++at) {
        gradients[nth][at] = shares[nth][at] * (to_weights[at] - delta[at]);
        weights_row[at] = rounded(shares[nth][at]);
        to_scores_row[at] = rounded(gradients[nth][at]);
      }
    }
    auto* both = reinterpret_cast<uint32_t*>(paired + pair * kPanel);
    for (int64_t at = 0; at < kPanel; ++at) {
      both[at] = (rounded_bits(gradients[0][at]) >> 16) | (rounded_bits(gradients[1][at]) & 0xffff0000u);
    }
  }
}

// One block of keys against one block of queries.
void block_gradients(Workspace& w, int64_t first_key, int64_t first_query, float scale) {
  for (int64_t column = 0; column < kQueries; column += kPanel) {
    const int64_t query = first_query + column;
    if (query + kPanel <= first_key) {  // all of the panel is before the keys
      for (int64_t key = 0; key < kKeys; ++key) {
        std::fill_n(w.weights.data() + key * kQueries + column, kPanel, BFloat16(0.0f));
        std::fill_n(w.to_scores.data() + key * kQueries + column, kPanel, BFloat16(0.0f));
      }
      continue;
    }
    brgemm(kKeys, kPanel, w.size, w.size, kPanel, kPanel, false, w.key_rows.data() + first_key * w.size,
           w.query_over_size.data() + query * w.size, w.scores.data());
    brgemm(kKeys, kPanel, w.size, w.size, kPanel, kPanel, false, w.value_rows.data() + first_key * w.size,
           w.upstream_over_size.data() + query * w.size, w.to_weights.data());
    panel_gradients(w, first_key, query, column, scale);
    brgemm(w.size, kPanel, kKeys, kKeys, kPanel, kPanel, true, w.key_transposed.data() + first_key * w.size,
           w.to_scores_paired.data() + column * kKeys, w.to_query.data() + query * w.size);
  }
  for (int64_t at = 0; at < w.size; at += w.width) {
    const int64_t panel = at * w.queries + first_query * w.width;
    brgemm(kKeys, w.width, kQueries, kQueries, w.width, w.size, true, w.weights.data(),
           w.upstream_over_tokens.data() + panel, w.to_value.data() + at);
    brgemm(kKeys, w.width, kQueries, kQueries, w.width, w.size, true, w.to_scores.data(),
           w.query_over_tokens.data() + panel, w.to_key.data() + at);
  }
}

// Rows [tokens][size] of a workspace into [tokens][head size], scaled.
void store(const float* rows, int64_t size, int64_t tokens, int64_t head_size, float scale, float* out) {
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t at = 0; at < head_size; ++at) out[token * head_size + at] = rows[token * size + at] * scale;
  }
}

void store_queries(const Workspace& w, int64_t tokens, int64_t head_size, float scale, float* out) {
  for (int64_t token = 0; token < tokens; ++token) {
    const float* panel = w.to_query.data() + token / kPanel * kPanel * w.size + token % kPanel;
    for (int64_t at = 0; at < head_size; ++at) out[token * head_size + at] = panel[at * kPanel] * scale;
  }
}

Tensor with_rows(const Tensor& heads) { return heads.stride(3) == 1 ? heads : heads.contiguous(); }

void check(const Tensor& x, at::IntArrayRef expected, const char* name) {
  TORCH_CHECK(x.sizes() == expected, name, " has shape ", x.sizes(), ", expected ", expected);
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, name, " is ", x.scalar_type(), ", expected bfloat16");
}

// query, output, upstream [B, H, N, D], key, value [B, Hkv, N, D], all bfloat16, log_sum_exp [B, H, N] float32 ->
// gradients of the query [P, B, H, N, D], to be summed over P, of key and value [B, H, N, D], to be summed over the
// heads that share them; float32.
std::tuple<Tensor, Tensor, Tensor> causal_backward(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& output, const Tensor& log_sum_exp,
    const Tensor& upstream, double scale) {
  TORCH_CHECK(at::native::cpublas::could_pack(at::kBFloat16), "this processor has no tiles for bfloat16");
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && key.size(1) > 0 && query.size(1) % key.size(1) == 0,
              "query and key have shapes ", query.sizes(), " and ", key.sizes());
  const int64_t batch = query.size(0), heads = query.size(1), tokens = query.size(2), size = query.size(3);
  const int64_t kv_heads = key.size(1), groups = heads / kv_heads;
  check(query, query.sizes(), "query");
  check(key, {batch, kv_heads, tokens, size}, "key");
  check(value, key.sizes(), "value");
  check(output, query.sizes(), "output");
  check(upstream, query.sizes(), "upstream");
  TORCH_CHECK(log_sum_exp.sizes() == query.sizes().slice(0, 3) && log_sum_exp.scalar_type() == at::kFloat,
              "log_sum_exp has shape ", log_sum_exp.sizes(), " and type ", log_sum_exp.scalar_type());

  const Tensor q = with_rows(query), k = with_rows(key), v = with_rows(value);
  const Tensor o = with_rows(output), g = with_rows(upstream), norms = log_sum_exp.contiguous();
  const int64_t blocks = rounded_up(tokens, kKeys) / kKeys;
  const int64_t parts = std::clamp<int64_t>(rounded_up(kTasks, batch * heads) / (batch * heads), 1, blocks);
  const auto options = norms.options();
  Tensor to_query = at::empty({parts, batch, heads, tokens, size}, options);
  Tensor to_key = at::empty({batch, heads, tokens, size}, options);
  Tensor to_value = at::empty({batch, heads, tokens, size}, options);
  auto* query_data = to_query.mutable_data_ptr<float>();
  auto* key_data = to_key.mutable_data_ptr<float>();
  auto* value_data = to_value.mutable_data_ptr<float>();
  const float factor = static_cast<float>(scale);

  at::parallel_for(0, parts * batch * heads, 1, [&](int64_t from, int64_t to) {
    Workspace w(tokens, size);
    for (int64_t task = from; task < to; ++task) {
      const int64_t head_index = task / parts, part = task % parts;
      const int64_t b = head_index / heads, h = head_index % heads, shared = h / groups;
      w.load(head_of(q, b, h), head_of(k, b, shared), head_of(v, b, shared), head_of(o, b, h), head_of(g, b, h),
             norms.const_data_ptr<float>() + head_index * tokens);
      for (int64_t block = part; block < blocks; block += parts) {
        const int64_t first_key = block * kKeys, count = std::min(kKeys, tokens - first_key);
        std::fill(w.to_key.begin(), w.to_key.end(), 0.0f);
        std::fill(w.to_value.begin(), w.to_value.end(), 0.0f);
        for (int64_t query = first_key / kQueries * kQueries; query < tokens; query += kQueries) {
          block_gradients(w, first_key, query, factor);
        }
        const int64_t row = (head_index * tokens + first_key) * size;
        store(w.to_key.data(), w.size, count, size, factor, key_data + row);
        store(w.to_value.data(), w.size, count, size, 1.0f, value_data + row);
      }
      const int64_t row = (part * batch * heads + head_index) * tokens * size;
      store_queries(w, tokens, size, factor, query_data + row);
    }
    at::native::cpublas::brgemm_release();
  });
  return {to_query, to_key, to_value};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(sinklora, library) {
  library.def(
      "causal_backward(Tensor query, Tensor key, Tensor value, Tensor output, Tensor log_sum_exp, "
      "Tensor upstream, float scale) -> (Tensor, Tensor, Tensor)");
  library.impl("causal_backward", c10::kCPU, &causal_backward);
}
