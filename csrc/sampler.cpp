#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "thread_pool.h"

namespace baton {

#define BATON_DECLARE(isa)                                               \
  namespace isa {                                                        \
  bool scan(const float*, int, float*);                                  \
  void weigh(const float*, int, float, float, float*, float*, int64_t*); \
  int collect(const float*, int, float, Candidate*);                     \
  }                                                                      \
  static constexpr LogitPasses k_##isa{#isa, isa::scan, isa::weigh, isa::collect};

BATON_DECLARE(portable)
#if defined(__x86_64__)
BATON_DECLARE(avx2)
BATON_DECLARE(avx512)
#endif
#undef BATON_DECLARE

const LogitPasses* find_logit_passes(const char* name) {
  for (const LogitPasses* each : {
#if defined(__x86_64__)
           &k_avx512, &k_avx2,
#endif
           &k_portable})
    if (std::strcmp(name, each->name) == 0) return each;
  return nullptr;
}

namespace {

__extension__ using Uint128 = unsigned __int128;

constexpr double kLog2E = 0x1.71547652b82fep0;
constexpr double kLn2 = 0x1.62e42fefa39efp-1;
constexpr int kQuantumBits = 40;
constexpr int kRandomBits = 53;

// The digits of a 32-bit key, highest first; they overlap by a bit, which does no harm.
constexpr int kDigitShifts[] = {21, 10, 0};
constexpr int kDigitBits = 11;

// floor(total * bits / 2^53): uniform in [0, total) where bits are in [0, 2^53).
uint64_t scaled_uniform(uint64_t bits, uint64_t total) {
  return uint64_t(Uint128(bits) * total >> kRandomBits);
}

float value_of(uint32_t key) {
  return std::bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

uint64_t weight_of(const Candidate& each) { return uint64_t(int64_t(value_of(each.key))); }
uint64_t one(const Candidate&) { return 1; }

// How far down the candidates are kept: keys above `key`, and the first `num_ties` equal to it.
struct Cut {
  uint32_t key;
  uint64_t num_ties;
};

// The logarithm of a whole number above zero: its exponent's, and of the rest m in [sqrt(1/2),
// sqrt(2)) the series 2 artanh((m - 1) / (m + 1)), which 11 terms carry below 1e-16.
double log_of(uint64_t whole) {
  int exponent;
  double m = std::frexp(double(whole), &exponent);
  if (m < 0x1.6a09e667f3bcdp-1) {
    m *= 2.0;
    --exponent;
  }
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double series = 0.0;
  for (int odd = 21; odd >= 1; odd -= 2) series = series * square + 1.0 / odd;
  return double(exponent) * kLn2 + 2.0 * s * series;
}

}  // namespace

// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). numpy
// counts before it generates, and makes a double of the upper 53 bits of the first word.
uint64_t random_bits(uint64_t seed, uint64_t position) {
  uint64_t c0 = position + 1, c1 = c0 == 0, c2 = 0, c3 = 0, k0 = seed, k1 = 0;
  for (int round = 0; round < 10; ++round) {
    const Uint128 p0 = Uint128(0xd2e7470ee14c6c93u) * c0, p1 = Uint128(0xca5a826395121157u) * c2;
    c0 = uint64_t(p1 >> 64) ^ c1 ^ k0;
    c2 = uint64_t(p0 >> 64) ^ c3 ^ k1;
    c1 = uint64_t(p1);
    c3 = uint64_t(p0);
    k0 += 0x9e3779b97f4a7c15u;  // golden ratio
    k1 += 0xbb67ae8584caa73bu;  // sqrt(3) - 1
  }
  return c0 >> (64 - kRandomBits);
}

// Room for one row, and the work on it.
class Sampler::Row {
 public:
  explicit Row(const LogitPasses& passes) : passes_(passes), histogram_(size_t(1) << kDigitBits) {}

  void reserve(int num) {
    if (int(weights_.size()) >= num) return;
    const size_t num_tiles = size_t(num + kTile - 1) / kTile;
    weights_.resize(num_tiles * kTile);
    candidates_.resize(num_tiles * kTile);
    narrowed_.resize(num_tiles * kTile);
    maxima_.resize(num_tiles * kTileMaxima);
    ordered_maxima_.resize(num_tiles * kTileMaxima);
    sums_.resize(num_tiles);
  }

  int choose(const LogitRow& row, const Choice& choice) {
    if (!read(row)) return kNoToken;
    if (choice.temperature == 0.0 || choice.top_k == 1) return first_best();
    weigh(float(kLog2E / choice.temperature));
    const uint64_t bits = random_bits(choice.seed, choice.position);
    const bool has_top_k = choice.top_k > 0 && choice.top_k < row_.num;
    if (!has_top_k && choice.top_p >= 1.0 && choice.min_p <= 0.0) return draw_any(bits);
    filter(choice, has_top_k);
    return draw_candidate(bits);
  }

  void logprobs(const LogitRow& row, int token, int num_top, Logprobs& result) {
    if (!read(row)) {
      result.chosen = std::numeric_limits<double>::quiet_NaN();
      return;
    }
    if (num_top > 0) find_best(std::min(num_top, row.num));
    weigh(float(kLog2E));
    const double log_total = log_of(total_) - double(kQuantumBits) * kLn2;
    const auto logprob = [&](float logit) { return (double(logit) - double(best_)) - log_total; };
    result.chosen = logprob(row.logits[token]);
    if (num_top > 0)
      for (int i = 0; i < num_candidates_; ++i)
        result.top.emplace_back(candidates_[i].id, logprob(value_of(candidates_[i].key)));
  }

 private:
  int num_maxima() const { return (row_.num + kTile - 1) / kTile * kTileMaxima; }

  // Finds the best logit. False: there is no distribution.
  bool read(const LogitRow& row) {
    row_ = row;
    if (!passes_.scan(row.logits, row.num, maxima_.data())) return false;
    best_ = *std::max_element(maxima_.begin(), maxima_.begin() + num_maxima());
    return std::isfinite(best_);
  }

  int first_best() const {
    int tile = 0;
    const auto has_best = [&](const float* maxima) {
      return std::find(maxima, maxima + kTileMaxima, best_) != maxima + kTileMaxima;
    };
    while (!has_best(maxima_.data() + tile * kTileMaxima)) ++tile;
    int id = tile * kTile;
    while (row_.logits[id] != best_) ++id;
    return id;
  }

  void weigh(float scale) {
    passes_.weigh(row_.logits, row_.num, best_, scale, weights_.data(), maxima_.data(),
                  sums_.data());
    total_ = 0;
    for (int tile = 0; tile < num_maxima() / kTileMaxima; ++tile) total_ += uint64_t(sums_[tile]);
  }

  // A value that at least `count` values of the last pass reach: so many of the maxima do.
  float reached_by(int count, float otherwise) {
    if (count > num_maxima()) return otherwise;
    const auto begin = ordered_maxima_.begin(), end = begin + num_maxima();
    std::copy_n(maxima_.begin(), num_maxima(), begin);
    std::nth_element(begin, begin + (count - 1), end, std::greater<float>());
    return ordered_maxima_[size_t(count) - 1];
  }

  // The candidates become the `count` best logits, in order.
  void find_best(int count) {
    const float least = reached_by(count, -std::numeric_limits<float>::infinity());
    num_candidates_ = passes_.collect(row_.logits, row_.num, least, candidates_.data());
    keep(cut_at(uint64_t(count), one));
    std::sort(candidates_.begin(), candidates_.begin() + num_candidates_,
              [](const Candidate& a, const Candidate& b) {
                return a.key != b.key ? a.key > b.key : a.id < b.id;
              });
  }

  // The candidates become the tokens that the filters leave, by id. Weightless ones are none.
  void filter(const Choice& choice, bool has_top_k) {
    const bool has_top_p = choice.top_p < 1.0;
    const double min_weight = choice.min_p * double(kBestWeight);
    float least = 1.0f;
    if (has_top_k)
      least = std::max(least, reached_by(int(choice.top_k), 0.0f));
    else if (has_top_p)
      least = std::max(least, outside_nucleus(total_ - mass_of(choice.top_p, total_)));
    else
      least = std::max(least, std::nextafter(float(min_weight), 0.0f));
    num_candidates_ = passes_.collect(weights_.data(), row_.num, least, candidates_.data());
    if (has_top_k && num_candidates_ > choice.top_k) keep(cut_at(uint64_t(choice.top_k), one));
    if (has_top_p) {
      const uint64_t whole = has_top_k ? sum_of_candidates() : total_;
      keep(cut_at(mass_of(choice.top_p, whole), weight_of));
    }
    if (choice.min_p > 0.0) {
      const auto end = std::remove_if(
          candidates_.begin(), candidates_.begin() + num_candidates_,
          [&](const Candidate& each) { return double(value_of(each.key)) < min_weight; });
      num_candidates_ = int(end - candidates_.begin());
    }
  }

  // How much weight a nucleus of `top_p` has to reach.
  static uint64_t mass_of(double top_p, uint64_t total) {
    const uint64_t mass = uint64_t(std::ceil(top_p * double(total)));
    return std::clamp<uint64_t>(mass, 1, total);
  }

  // A weight such that the tokens below it cannot be in a nucleus that leaves out `slack`: all of
  // them together weigh no more.
  float outside_nucleus(uint64_t slack) const {
    return std::nextafter(float(slack / uint64_t(row_.num)), 0.0f);
  }

  uint64_t sum_of_candidates() const {
    uint64_t sum = 0;
    for (int i = 0; i < num_candidates_; ++i) sum += weight_of(candidates_[i]);
    return sum;
  }

  // Where the best candidates' measures first reach `goal`, which is above 0 and at most what all
  // of them have. Digit by digit from the top: the bin in which the sum gets there has the next.
  template <class Measure>
  Cut cut_at(uint64_t goal, Measure measure) {
    constexpr uint32_t kMask = (1u << kDigitBits) - 1;
    const Candidate* among = candidates_.data();
    int num = num_candidates_;
    for (const int shift : kDigitShifts) {
      std::fill(histogram_.begin(), histogram_.end(), 0);
      for (int i = 0; i < num; ++i) histogram_[among[i].key >> shift & kMask] += measure(among[i]);
      uint32_t bin = kMask;
      for (; histogram_[bin] < goal; --bin) goal -= histogram_[bin];
      int num_narrowed = 0;
      for (int i = 0; i < num; ++i) {
        const Candidate each = among[i];
        narrowed_[size_t(num_narrowed)] = each;
        num_narrowed += (each.key >> shift & kMask) == bin;
      }
      among = narrowed_.data();
      num = num_narrowed;
    }
    const uint64_t each = measure(among[0]);
    return {among[0].key, (goal + each - 1) / each};
  }

  // Without branches: which way they go is random, and a wrong guess costs more than the work.
  void keep(const Cut& cut) {
    uint64_t ties = cut.num_ties;
    int num_kept = 0;
    for (int i = 0; i < num_candidates_; ++i) {
      const Candidate each = candidates_[size_t(i)];
      const bool is_tie = (each.key == cut.key) & (ties > 0);
      candidates_[size_t(num_kept)] = each;
      num_kept += (each.key > cut.key) | is_tie;
      ties -= is_tie;
    }
    num_candidates_ = num_kept;
  }

  // Inverts the cumulative distribution, in order of ids.
  int draw_any(uint64_t bits) const {
    const auto weight = [&](int id) { return uint64_t(int64_t(weights_[size_t(id)])); };
    uint64_t left = scaled_uniform(bits, total_);
    int tile = 0;
    for (; left >= uint64_t(sums_[tile]); ++tile) left -= uint64_t(sums_[tile]);
    int id = tile * kTile;
    for (; left >= weight(id); ++id) left -= weight(id);
    return id;
  }

  int draw_candidate(uint64_t bits) const {
    uint64_t left = scaled_uniform(bits, sum_of_candidates());
    const Candidate* each = candidates_.data();
    for (; left >= weight_of(*each); ++each) left -= weight_of(*each);
    return each->id;
  }

  const LogitPasses& passes_;
  LogitRow row_{};
  float best_ = 0.0f;
  uint64_t total_ = 0;
  std::vector<float> weights_;
  std::vector<float> maxima_;
  std::vector<float> ordered_maxima_;
  std::vector<int64_t> sums_;
  std::vector<Candidate> candidates_;
  std::vector<Candidate> narrowed_;
  std::vector<uint64_t> histogram_;
  int num_candidates_ = 0;
};

Sampler::Sampler(const LogitPasses& passes, ThreadPool* threads)
    : passes_(passes), threads_(threads) {
  const int num_threads = threads ? threads->num_threads() : 1;
  for (int i = 0; i < num_threads; ++i) row_of_thread_.push_back(std::make_unique<Row>(passes));
}

Sampler::~Sampler() = default;

template <class F>
void Sampler::for_rows(const std::vector<LogitRow>& rows, const F& work) {
  DenormalsOff denormals_off;
  int widest = 0;
  for (const LogitRow& row : rows) widest = std::max(widest, row.num);
  for (auto& row : row_of_thread_) row->reserve(widest);
  const auto piece = [&](int index, int thread) { work(*row_of_thread_[size_t(thread)], index); };
  if (threads_ != nullptr) {
    threads_->run(int(rows.size()), piece);
    return;
  }
  for (int index = 0; index < int(rows.size()); ++index) piece(index, 0);
}

void Sampler::choose(const std::vector<LogitRow>& rows, const std::vector<Choice>& choices,
                     int* tokens) {
  for_rows(rows,
           [&](Row& row, int i) { tokens[i] = row.choose(rows[size_t(i)], choices[size_t(i)]); });
}

void Sampler::logprobs(const std::vector<LogitRow>& rows, const std::vector<int>& tokens,
                       const std::vector<int>& num_top, Logprobs* results) {
  for (size_t i = 0; i < rows.size(); ++i) results[i].top.reserve(size_t(std::max(num_top[i], 0)));
  for_rows(rows, [&](Row& row, int i) {
    const size_t index = size_t(i);
    row.logprobs(rows[index], tokens[index], num_top[index], results[index]);
  });
}

}  // namespace baton
