// Decoding over heads that keep different numbers of tokens, on a processor: attention of one query a row,
// and whose token leaves.
//
// The tokens of a head are cut into pieces of the same length. A task is a piece: its keys and values are
// read once, for all queries that share the head; softmax and output are relative to the piece's own largest
// score, and brought to that of the head once all pieces are there. Where pieces begin and in which order
// they are added up does not depend on the number of threads, and so neither does the result.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using Vector = at::vec::Vectorized<float>;

constexpr int64_t kLanes = Vector::size();
constexpr int64_t kPiece = 128;   // tokens: a head of 64 bfloat16 numbers and its values fill a first-level cache
constexpr int64_t kQueries = 4;   // of a group, in registers at once
constexpr int64_t kVectors = 4;   // of a value, in registers at once
constexpr int64_t kCacheLine = 64;
constexpr int64_t kTogether = 1024;  // tokens that are worth a thread

struct Piece {
  int64_t head, begin, end;  // slots of all heads
};

int64_t padded(int64_t size) {
  return (size + kLanes - 1) / kLanes * kLanes;
}

inline Vector loaded(const float* numbers) {
  return Vector::loadu(numbers);
}

template <typename Number>
inline Vector loaded(const Number* numbers) {
  Vector found;
  at::vec::load_to_float<Number>(numbers, found);
  return found;
}

// The first `count` of so many lanes, zeros behind them; what lies there may not even be a number.
template <typename Number>
inline Vector loaded(const Number* numbers, int64_t count) {
  if (count >= kLanes) return loaded(numbers);
  Number found[kLanes] = {};
  std::copy(numbers, numbers + count, found);
  return loaded(found);
}

float sum_of(const Vector& x) {
  return at::vec::vec_reduce_all<float>([](Vector& a, Vector& b) { return a + b; }, x);
}

// Pieces of all heads, one after the other.
std::vector<Piece> pieces_of(at::IntArrayRef slots) {
  std::vector<Piece> pieces;
  int64_t begin = 0;
  for (int64_t head = 0; head < static_cast<int64_t>(slots.size()); ++head) {
    const int64_t end = begin + slots[head];
    for (; begin < end; begin += kPiece) pieces.push_back({head, begin, std::min(begin + kPiece, end)});
    begin = end;
  }
  return pieces;
}

// Runs a function on [from, to) of things that begin at `begin(thing)`, as many slots for each thread.
template <typename Begin, typename Function>
void share(int64_t slots, int64_t things, const Begin& begin, const Function& function) {
  const auto at_or_behind = [&](int64_t slot) {
    int64_t low = 0, high = things;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (begin(middle) < slot) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  at::parallel_for(0, slots, kTogether, [&](int64_t from, int64_t to) {
    function(at_or_behind(from), at_or_behind(to));
  });
}

// Rows that are needed next: keys and values are two streams, and memory is not to wait for arithmetic.
struct Ahead {
  const char* rows;
  int64_t bytes, number;

  void fetch(int64_t row) const {
    if (row >= number) return;
    for (int64_t at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(rows + row * bytes + at, 0, 2);
  }
};

template <typename Number>
Ahead ahead(const Number* rows, int64_t size, int64_t number) {
  return {reinterpret_cast<const char*>(rows), size * static_cast<int64_t>(sizeof(Number)), number};
}

// Scores of `count` queries with a token, `stride` apart: those of a piece are in the first-level cache soon.
template <typename Number, int64_t count>
void score(
    const Number* keys,
    int64_t tokens,
    const float* queries,
    int64_t size,
    float* scores,
    int64_t stride,
    const Ahead& values) {
  const int64_t width = padded(size);
  for (int64_t token = 0; token < tokens; ++token, keys += size) {
    values.fetch(token);
    Vector dots[count];
    for (auto& dot : dots) dot = Vector(0.0f);
    for (int64_t at = 0; at < size; at += kLanes) {
      const Vector key = loaded(keys + at, size - at);
      for (int64_t query = 0; query < count; ++query) {
        dots[query] = at::vec::fmadd(key, Vector::loadu(queries + query * width + at), dots[query]);
      }
    }
    for (int64_t query = 0; query < count; ++query) scores[query * stride + token] = sum_of(dots[query]);
  }
}

// Values of a piece, times what `count` queries give them, for `vectors` of their numbers from `at` on.
template <typename Number, int64_t count, int64_t vectors>
void gather(
    const Number* values,
    int64_t tokens,
    int64_t size,
    int64_t at,
    const float* weights,
    int64_t stride,
    float* output,
    const Ahead& keys) {
  Vector sums[count][vectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = Vector(0.0f);
  }
  for (int64_t token = 0; token < tokens; ++token) {
    keys.fetch(token);
    Vector value[vectors];
    for (int64_t part = 0; part < vectors; ++part) {
      const int64_t first = at + part * kLanes;
      value[part] = loaded(values + token * size + first, size - first);
    }
    for (int64_t query = 0; query < count; ++query) {
      const Vector weight(weights[query * stride + token]);
      for (int64_t part = 0; part < vectors; ++part) {
        sums[query][part] = at::vec::fmadd(weight, value[part], sums[query][part]);
      }
    }
  }
  for (int64_t query = 0; query < count; ++query) {
    for (int64_t part = 0; part < vectors; ++part) {
      sums[query][part].store(output + query * padded(size) + at + part * kLanes);
    }
  }
}

// Calls a function with a number from 1 to `most` that the compiler knows.
template <int64_t most, typename Function>
void with_constant(int64_t number, const Function& function) {
  if constexpr (most > 1) {
    if (number < most) return with_constant<most - 1>(number, function);
  }
  function(std::integral_constant<int64_t, most>());
}

// Brings scores to exponentials relative to the largest one; returns that and their sum.
std::pair<float, float> exponentials(float* scores, int64_t tokens) {
  Vector most(-INFINITY);
  for (int64_t at = 0; at < tokens; at += kLanes) {
    const int64_t count = std::min(kLanes, tokens - at);
    most = Vector::set(most, at::vec::maximum(most, Vector::loadu(scores + at, count)), count);
  }
  const float largest =
      at::vec::vec_reduce_all<float>([](Vector& a, Vector& b) { return at::vec::maximum(a, b); }, most);
  // Where all are hidden, they are exponentials of -inf.
  const Vector shift(largest == -INFINITY ? 0.0f : largest);
  Vector sum(0.0f);
  for (int64_t at = 0; at < tokens; at += kLanes) {
    const int64_t count = std::min(kLanes, tokens - at);
    const Vector exponential = (Vector::loadu(scores + at, count) - shift).exp_u20();
    exponential.store(scores + at, count);
    sum = Vector::set(sum, sum + exponential, count);
  }
  return {largest, sum_of(sum)};
}

// What is known of a piece, query by query.
struct Partial {
  float most, sum;
};

template <typename Number>
class Attention {
 public:
  Attention(const Tensor& query, const Tensor& key, const Tensor& value, double scale, const bool* visible,
            at::IntArrayRef slots, Tensor& weights, Tensor& output)
      : heads_(slots.size()), groups_(query.size(0) * query.size(1) / heads_), size_(key.size(1)),
        value_size_(value.size(1)), total_(key.size(0)), visible_(visible), pieces_(pieces_of(slots)),
        keys_(key.const_data_ptr<Number>()), values_(value.const_data_ptr<Number>()),
        weights_(weights.mutable_data_ptr<float>()), stride_(weights.stride(0)),
        output_(output.mutable_data_ptr<Number>()), queries_(heads_ * groups_ * padded(size_)),
        partial_(pieces_.size() * groups_), outputs_(pieces_.size() * groups_ * padded(value_size_)) {
    const auto* given = query.const_data_ptr<Number>();
    for (int64_t row = 0; row < heads_ * groups_; ++row) {
      for (int64_t at = 0; at < size_; ++at) {
        queries_[row * padded(size_) + at] = static_cast<float>(given[row * size_ + at]) * static_cast<float>(scale);
      }
    }
  }

  void run() {
    const auto begin_of_piece = [&](int64_t piece) { return pieces_[piece].begin; };
    share(total_, pieces_.size(), begin_of_piece, [&](int64_t from, int64_t to) {
      for (int64_t piece = from; piece < to; ++piece) attend(piece);
    });
    join();
    share(total_, pieces_.size(), begin_of_piece, [&](int64_t from, int64_t to) {
      for (int64_t piece = from; piece < to; ++piece) normalize(piece);
    });
  }

 private:
  // One piece, of which each number is read from memory once.
  void attend(int64_t index) {
    const Piece& piece = pieces_[index];
    const int64_t tokens = piece.end - piece.begin, width = padded(value_size_);
    const Ahead values = ahead(values_ + piece.begin * value_size_, value_size_, tokens);
    const Ahead keys = ahead(keys_ + piece.end * size_, size_, std::min(kPiece, total_ - piece.end));
    const Ahead nothing = {nullptr, 0, 0};
    for (int64_t first = 0; first < groups_; first += kQueries) {
      const int64_t count = std::min(kQueries, groups_ - first);
      float* mine = weights_ + first * stride_ + piece.begin;
      const float* queries = queries_.data() + (piece.head * groups_ + first) * padded(size_);
      with_constant<kQueries>(count, [&](auto known) {
        score<Number, known()>(keys_ + piece.begin * size_, tokens, queries, size_, mine, stride_, first == 0 ? values : nothing);
      });
      for (int64_t query = 0; query < count; ++query) {
        float* scores = mine + query * stride_;
        if (visible_ != nullptr) {
          for (int64_t at = 0; at < tokens; ++at) {
            if (!visible_[piece.begin + at]) scores[at] = -INFINITY;
          }
        }
        const auto [most, sum] = exponentials(scores, tokens);
        partial_[index * groups_ + first + query] = {most, sum};
      }
      float* output = outputs_.data() + (index * groups_ + first) * width;
      for (int64_t at = 0; at < value_size_; at += kVectors * kLanes) {
        const int64_t vectors = std::min(kVectors, (width - at) / kLanes);
        with_constant<kQueries>(count, [&](auto known) {
          with_constant<kVectors>(vectors, [&](auto parts) {
            gather<Number, known(), parts()>(
                values_ + piece.begin * value_size_, tokens, value_size_, at, mine, stride_, output,
                first == 0 && at == 0 ? keys : nothing);
          });
        });
      }
    }
  }

  // Adds up the outputs of each head's pieces, and leaves in `most` what each piece's weights are times.
  void join() {
    const int64_t width = padded(value_size_);
    std::vector<float> joined(width);
    std::fill(output_, output_ + heads_ * groups_ * value_size_, Number(0.0f));
    for (size_t first = 0, last; first < pieces_.size(); first = last) {
      for (last = first; last < pieces_.size() && pieces_[last].head == pieces_[first].head;) ++last;
      for (int64_t query = 0; query < groups_; ++query) {
        float most = -INFINITY, sum = 0.0f;
        for (size_t piece = first; piece < last; ++piece) {
          const float largest = partial_[piece * groups_ + query].most;
          most = std::isnan(largest) || largest > most ? largest : most;
          if (std::isnan(most)) break;
        }
        for (size_t piece = first; piece < last; ++piece) {
          Partial& mine = partial_[piece * groups_ + query];
          mine.most = std::exp(mine.most - most);  // of a head that sees nothing: not a number, as its softmax
          sum += mine.most * mine.sum;
        }
        std::fill(joined.begin(), joined.end(), 0.0f);
        for (size_t piece = first; piece < last; ++piece) {
          Partial& mine = partial_[piece * groups_ + query];
          mine.most /= sum;
          const float* output = outputs_.data() + (piece * groups_ + query) * width;
          for (int64_t at = 0; at < value_size_; ++at) joined[at] += mine.most * output[at];
        }
        Number* output = output_ + (pieces_[first].head * groups_ + query) * value_size_;
        for (int64_t at = 0; at < value_size_; ++at) output[at] = static_cast<Number>(joined[at]);
      }
    }
  }

  // Weights of a piece relative to all of its head.
  void normalize(int64_t index) {
    const Piece& piece = pieces_[index];
    for (int64_t query = 0; query < groups_; ++query) {
      float* weights = weights_ + query * stride_ + piece.begin;
      const float factor = partial_[index * groups_ + query].most;
      for (int64_t at = 0; at < piece.end - piece.begin; ++at) weights[at] *= factor;
    }
  }

  int64_t heads_, groups_, size_, value_size_, total_;
  const bool* visible_;
  std::vector<Piece> pieces_;
  const Number *keys_, *values_;
  float* weights_;
  int64_t stride_;
  Number* output_;
  std::vector<float> queries_;  // in float32, scaled, [heads * groups, padded size]
  std::vector<Partial> partial_;
  std::vector<float> outputs_;  // of pieces, not divided by the softmax's sum
};

void check_slots(at::IntArrayRef slots, int64_t total) {
  int64_t sum = 0;
  for (const int64_t count : slots) {
    TORCH_CHECK(count >= 0, "slots has ", count, ", expected numbers of slots");
    sum += count;
  }
  TORCH_CHECK(sum == total, "slots has ", sum, " slots in all, but there are ", total);
}

// query [B, H, 1, D], key [T, D], value [T, D'] of one dtype, the slots of B * Hkv heads, visible [T]; writes
// float32 weights [H / Hkv, T] -> [B, H, 1, D'].
Tensor ragged_attention(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    at::IntArrayRef slots,
    double scale,
    const std::optional<Tensor>& visible,
    Tensor& weights) {
  TORCH_CHECK(query.dim() == 4 && query.size(2) == 1, "query has shape ", query.sizes(),
              ", expected [batch, heads, 1, head size]");
  const int64_t total = key.size(0), rows = query.size(0) * query.size(1), heads = slots.size();
  TORCH_CHECK(key.dim() == 2 && value.dim() == 2 && value.size(0) == total && key.size(1) == query.size(3),
              "key and value have shapes ", key.sizes(), " and ", value.sizes(), ", which do not go with query's ",
              query.sizes());
  TORCH_CHECK(heads > 0 && heads % query.size(0) == 0 && rows % heads == 0, "slots has ", heads,
              " heads, which do not go with query's ", query.sizes());
  check_slots(slots, total);
  TORCH_CHECK(weights.scalar_type() == at::kFloat && weights.dim() == 2 && weights.size(0) == rows / heads &&
                  weights.size(1) == total && weights.stride(1) == 1,
              "weights has shape ", weights.sizes(), " in ", weights.scalar_type(), ", expected [", rows / heads, ", ",
              total, "] in Float, slots side by side");
  TORCH_CHECK(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
              "query, key and value are in ", query.scalar_type(), ", ", key.scalar_type(), " and ",
              value.scalar_type(), ", expected one dtype");
  TORCH_CHECK(key.is_contiguous() && value.is_contiguous(), "key and value have strides ", key.strides(), " and ",
              value.strides(), ", expected contiguous ones");
  if (visible) {
    TORCH_CHECK(visible->scalar_type() == at::kBool && visible->dim() == 1 && visible->size(0) == total &&
                    visible->is_contiguous(),
                "visible has shape ", visible->sizes(), " in ", visible->scalar_type(), ", expected [", total,
                "] in Bool, side by side");
  }
  const bool* seen = visible ? visible->const_data_ptr<bool>() : nullptr;
  const Tensor queries = query.contiguous();
  Tensor output = at::empty({query.size(0), query.size(1), 1, value.size(1)}, query.options());
  switch (query.scalar_type()) {
    case at::kFloat:
      Attention<float>(queries, key, value, scale, seen, slots, weights, output).run();
      break;
    case at::kBFloat16:
      Attention<at::BFloat16>(queries, key, value, scale, seen, slots, weights, output).run();
      break;
    case at::kHalf:
      Attention<at::Half>(queries, key, value, scale, seen, slots, weights, output).run();
      break;
    default:
      TORCH_CHECK(false, "query is in ", query.scalar_type(), ", expected Float, BFloat16 or Half");
  }
  return output;
}

// The number of ranks below all others is that of what is not a number; above them is what stays.
inline float ordered(float rank, int32_t position, int32_t first_recent, int32_t protected_before) {
  if (position >= first_recent || position < protected_before) return INFINITY;
  if (std::isnan(rank)) return -INFINITY;
  return std::min(rank, std::numeric_limits<float>::max());
}

// rank [T] in float32, positions [T] in int32, the slots of heads, the batch row of each head [heads] in
// int64; of each row [B], in int32, from which position on tokens stay, and below which -> slots [heads].
Tensor lowest_slots(
    const Tensor& rank,
    const Tensor& positions,
    at::IntArrayRef slots,
    const Tensor& row_of_head,
    const Tensor& first_recent,
    const Tensor& protected_before) {
  const int64_t heads = slots.size(), rows = first_recent.numel();
  TORCH_CHECK(rank.dim() == 1 && rank.scalar_type() == at::kFloat && rank.is_contiguous(), "rank has shape ",
              rank.sizes(), " in ", rank.scalar_type(), ", expected one dimension in Float, side by side");
  TORCH_CHECK(positions.sizes() == rank.sizes() && positions.scalar_type() == at::kInt && positions.is_contiguous(),
              "positions has shape ", positions.sizes(), " in ", positions.scalar_type(), ", expected ", rank.sizes(),
              " in Int, side by side");
  check_slots(slots, rank.size(0));
  for (const int64_t count : slots) TORCH_CHECK(count > 0, "slots has a head without slots, of which none can leave");
  TORCH_CHECK(row_of_head.dim() == 1 && row_of_head.size(0) == heads && row_of_head.scalar_type() == at::kLong &&
                  row_of_head.is_contiguous(),
              "row_of_head has shape ", row_of_head.sizes(), " in ", row_of_head.scalar_type(), ", expected [", heads,
              "] in Long, side by side");
  for (const Tensor* given : {&first_recent, &protected_before}) {
    TORCH_CHECK(given->dim() == 1 && given->numel() == rows && given->scalar_type() == at::kInt &&
                    given->is_contiguous(),
                "first_recent and protected_before have shapes ", first_recent.sizes(), " and ",
                protected_before.sizes(), ", expected one number a row in Int, side by side");
  }
  std::vector<int64_t> begins(heads + 1, 0);
  for (int64_t head = 0; head < heads; ++head) begins[head + 1] = begins[head] + slots[head];
  Tensor result = at::empty({heads}, row_of_head.options());
  const auto* ranks = rank.const_data_ptr<float>();
  const auto* places = positions.const_data_ptr<int32_t>();
  const auto* row_of = row_of_head.const_data_ptr<int64_t>();
  const auto* recent = first_recent.const_data_ptr<int32_t>();
  const auto* first = protected_before.const_data_ptr<int32_t>();
  auto* out = result.mutable_data_ptr<int64_t>();
  for (int64_t head = 0; head < heads; ++head) {
    TORCH_CHECK(row_of[head] >= 0 && row_of[head] < rows, "row_of_head has ", row_of[head], ", expected rows below ",
                rows);
  }
  share(rank.size(0), heads, [&](int64_t head) { return begins[head]; }, [&](int64_t from, int64_t to) {
    for (int64_t head = from; head < to; ++head) {
      const int32_t newest = recent[row_of[head]], oldest = first[row_of[head]];
      int64_t lowest = begins[head];
      float least = ordered(ranks[lowest], places[lowest], newest, oldest);
      for (int64_t slot = lowest + 1; slot < begins[head + 1]; ++slot) {
        const float mine = ordered(ranks[slot], places[slot], newest, oldest);
        if (mine < least || (mine == least && places[slot] < places[lowest])) {
          lowest = slot;
          least = mine;
        }
      }
      out[head] = lowest;
    }
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(sinklora, library) {
  library.def(
      "ragged_attention(Tensor query, Tensor key, Tensor value, int[] slots, float scale, Tensor? visible, "
      "Tensor(a!) weights) -> Tensor");
  library.impl("ragged_attention", c10::kCPU, &ragged_attention);
  library.def(
      "lowest_slots(Tensor rank, Tensor positions, int[] slots, Tensor row_of_head, Tensor first_recent, "
      "Tensor protected_before) -> Tensor");
  library.impl("lowest_slots", c10::kCPU, &lowest_slots);
}
