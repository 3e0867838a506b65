// Strided convolutions of NHWC images with HWIO kernels by oneDNN 3, as an XLA foreign function:
// the output y of x and k, or the gradient by x or by k, of float32 or bfloat16, in float32. XLA's own threads share the batch in
// pieces, each of which oneDNN computes on one thread: so nobody waits for threads that others use.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

extern "C" void omp_set_num_threads(int);
extern "C" int omp_get_max_threads();

namespace ffi = xla::ffi;
using dnnl::memory;
using tag = memory::format_tag;

namespace {

enum Wanted : int64_t { Y = 0, X = 1, K = 2 };
enum Side { Rows, Inputs, Outputs };
constexpr auto F32 = memory::data_type::f32;
constexpr int64_t kPiece = 1 << 19;  // bytes of x and y, half a core's second cache
constexpr int64_t kAlone = 1 << 21;  // products of a dense layer that do not repay another thread
constexpr int64_t kSums = 64;        // pieces at most whose sums are kept
constexpr int64_t kThin = 64;        // inputs of an output, up to which rows of them are copied

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// oneDNN on this thread alone, while it lives
struct Alone {
  const int before = omp_get_max_threads();
  Alone() { omp_set_num_threads(1); }
  ~Alone() { omp_set_num_threads(before); }
};

// f(i) for all i < n by this thread and those of XLA's that are free; then, by the last to
// end, done(). Nobody waits: XLA goes on with what does not need the result.
template <typename F, typename D>
ffi::Future share(ffi::ThreadPool& pool, int64_t n, int64_t workers, F f, D done) {
  struct Shared {
    F f;
    D done;
    std::atomic<int64_t> left, next{0};
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::string error;
    ffi::Promise promise;
  };
  std::shared_ptr<Shared> shared(new Shared{std::move(f), std::move(done), n});
  ffi::Future future(shared->promise);
  auto work = [shared, n] {  // one that comes late finds nothing and does not touch f
    int64_t mine = 0;
    auto tried = [&](auto step) {
      try {
        step();
      } catch (const std::exception& e) {
        if (!shared->failed.test_and_set()) shared->error = e.what();
      }
    };
    Alone alone;
    for (int64_t i; (i = shared->next++) < n; ++mine) tried([&] { shared->f(i); });
    if (mine == 0 || (shared->left -= mine) > 0) return;
    tried([&] { shared->done(); });
    if (shared->failed.test_and_set())
      shared->promise.SetError(ffi::Error::Internal(shared->error));
    else
      shared->promise.SetAvailable();
  };
  for (int64_t w = 1; w < std::min(n, workers); ++w) pool.Schedule(decltype(work)(work));
  work();
  return future;
}

using Bytes = std::unique_ptr<char, decltype(&std::free)>;
Bytes aligned(size_t bytes) {
  return {static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), &std::free};
}

// memory of this thread's own, kept for the next piece
enum Use { Columns, Scratchpad, Uses };
char* own(Use use, size_t bytes) {
  struct Buffer {
    Bytes data{nullptr, &std::free};
    size_t size = 0;
  };
  thread_local Buffer buffers[Uses];
  Buffer& buffer = buffers[use];
  if (buffer.size < bytes) buffer = {aligned(bytes), bytes};
  return buffer.data.get();
}

// memory of a call, whose threads share it, kept for a later one (by the end of the process too,
// where a call may still be under way)
std::shared_ptr<char> borrowed(size_t bytes) {
  static std::mutex taking;
  static auto& kept = *new std::multimap<size_t, Bytes>;
  std::lock_guard<std::mutex> lock(taking);
  auto found = kept.find(bytes);
  Bytes data = found == kept.end() ? aligned(bytes) : std::move(found->second);
  if (found != kept.end()) kept.erase(found);
  return {data.release(), [bytes](char* data) {
            std::lock_guard<std::mutex> lock(taking);
            kept.emplace(bytes, Bytes(data, &std::free));
          }};
}

struct Shape {
  int64_t n, h, w, c, kh, kw, oh, ow, m, sh, sw, top, left, bottom, right;
  int64_t inputs() const { return kh * kw * c; }  // of an output
  bool dense() const { return kh * kw * sh * sw == 1; }
  bool thin() const { return !dense() && inputs() <= kThin; }
  bool products() const { return dense() || thin(); }
  int64_t rows() const { return n * oh * ow; }
  // what threads share of a dense layer: the longer side of the matrix that is wanted
  Side split(Wanted wanted) const {
    const Side first = wanted == K ? Inputs : Rows, second = wanted == X ? Inputs : Outputs;
    return size(first) >= size(second) ? first : second;
  }
  int64_t size(Side side) const { return side == Rows ? rows() : side == Inputs ? c : m; }
};

// the inputs of each output as a row, [n oh ow, kh kw c], of n images; or what the rows send back
template <typename F>
void neighbourhoods(const Shape& s, int64_t n, const F& f) {
  for (int64_t row = 0; row < n * s.oh * s.ow; ++row) {
    const int64_t i = row / s.ow % s.oh * s.sh - s.top, j = row % s.ow * s.sw - s.left;
    const int64_t first = std::max<int64_t>(0, -j), last = std::min(s.kw, s.w - j);
    for (int64_t a = 0; a < s.kh; ++a) {
      const bool inside = i + a >= 0 && i + a < s.h && first < last;
      const int64_t pixel = (row / (s.oh * s.ow) * s.h + i + a) * s.w + j;
      f((row * s.kh + a) * s.kw * s.c, pixel * s.c, inside ? first * s.c : 0,
        inside ? last * s.c : 0);
    }
  }
}

// The work on some images or, of a dense layer, on some rows or columns of what is wanted.
struct Part {
  dnnl::primitive primitive;
  memory::desc x, k, y, scratchpad;
};

// Products of rows: y = x k, x = y k^T, k = x^T y; of a dense layer n of the rows or columns. What
// is given is of `type`, what is wanted F32, as everywhere.
Part product(const Shape& s, Wanted wanted, int64_t n, memory::data_type type,
             const dnnl::primitive_attr& attr) {
  int64_t sizes[] = {n * s.oh * s.ow, s.inputs(), s.m};  // Rows, Inputs, Outputs
  if (s.dense()) sizes[Rows] = s.rows(), sizes[s.split(wanted)] = n;
  const auto [rows, inputs, outputs] = sizes;
  const memory::desc y({rows, outputs}, wanted == Y ? F32 : type, memory::dims{s.m, 1});
  const memory::desc x({rows, inputs}, wanted == X ? F32 : type, memory::dims{s.inputs(), 1});
  const memory::desc k({inputs, outputs}, wanted == K ? F32 : type, memory::dims{s.m, 1});
  auto of = [&](const memory::desc& a, const memory::desc& b, const memory::desc& c) {
    dnnl::matmul::primitive_desc pd(cpu(), a, b, c, attr);
    return Part{dnnl::matmul(pd), x, k, y, pd.scratchpad_desc()};
  };
  auto t = [](const memory::desc& a) { return a.permute_axes({1, 0}); };
  return wanted == Y ? of(x, k, y) : wanted == X ? of(y, t(k), x) : of(t(x), y, k);
}

Part convolution(const Shape& s, Wanted wanted, int64_t n, memory::data_type type,
                 const dnnl::primitive_attr& attr, const memory::desc* order) {
  using namespace dnnl;
  const auto direct = algorithm::convolution_direct;
  const memory::desc given({n, s.c, s.h, s.w}, type, tag::nhwc),
      x({n, s.c, s.h, s.w}, wanted == X ? F32 : type, tag::nhwc),
      y({n, s.m, s.oh, s.ow}, wanted == Y ? F32 : type, tag::nhwc);
  const memory::dims sizes{s.m, s.c, s.kh, s.kw}, stride{s.sh, s.sw}, before{s.top, s.left};
  const memory::dims after{s.bottom, s.right};
  const memory::desc any(sizes, type, tag::any), full(sizes, F32, tag::any);
  const memory::desc &k = order && wanted != K ? *order : any, &sum = order ? *order : full;
  convolution_forward::primitive_desc forward(cpu(), prop_kind::forward_training, direct, given, k,
                                              y, stride, before, after, attr);
  if (wanted == Y)
    return {convolution_forward(forward), x, forward.weights_desc(), y, forward.scratchpad_desc()};
  if (wanted == X) {
    convolution_backward_data::primitive_desc pd(cpu(), direct, x, k, y, stride, before, after,
                                                 forward, attr);
    return {convolution_backward_data(pd), x, pd.weights_desc(), y, pd.scratchpad_desc()};
  }
  convolution_backward_weights::primitive_desc pd(cpu(), direct, x, sum, y, stride, before, after,
                                                  forward, attr);
  return {convolution_backward_weights(pd), x, pd.diff_weights_desc(), y, pd.scratchpad_desc()};
}

void execute(const dnnl::primitive& primitive, const std::unordered_map<int, memory>& arguments) {
  dnnl::stream stream(cpu());
  primitive.execute(stream, arguments);
  stream.wait();
}

void reorder(const memory::desc& from, void* source, const memory::desc& to, void* target) {
  memory a(from, cpu(), source), b(to, cpu(), target);
  dnnl::stream stream(cpu());
  dnnl::reorder(a, b).execute(stream, a, b);
  stream.wait();
}

struct Plan {
  int64_t size, pieces;  // of images or columns
  Part whole, rest;      // rest: the last piece, where size does not divide
};

Plan plan(const Shape& s, Wanted wanted, memory::data_type type, int64_t workers) {
  const int64_t all = s.dense() ? s.size(s.split(wanted)) : s.n;
  const int64_t most = (all + workers - 1) / workers;
  const int64_t bytes = memory::data_type_size(type) * (s.h * s.w * s.c + s.oh * s.ow * s.m);
  // an oneDNN gradient by the kernel costs the same for few images as for many
  const bool small = s.dense() && s.rows() * s.c * s.m < kAlone;
  const bool equal = s.dense() || (wanted == K && !s.thin());
  const int64_t least = wanted == K ? (all + kSums - 1) / kSums : 1;
  const int64_t fits = std::clamp<int64_t>(std::max(kPiece / bytes, least), 1, most);
  const int64_t size = small ? all : equal ? most : fits;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  auto of = [&](int64_t n, const memory::desc* order) {
    return s.products() ? product(s, wanted, n, type, attr)
                        : convolution(s, wanted, n, type, attr, order);
  };
  Plan made{size, (all + size - 1) / size, of(size, nullptr), {}};
  if (all % size) made.rest = of(all % size, &made.whole.k);
  return made;
}

void columns_of(const Shape& s, int64_t n, int64_t bytes, const char* x, char* columns) {
  neighbourhoods(s, n, [&](int64_t row, int64_t pixel, int64_t first, int64_t last) {
    char* to = columns + row * bytes;
    std::memset(to, 0, first * bytes);
    if (last > first)
      std::memcpy(to + first * bytes, x + (pixel + first) * bytes, (last - first) * bytes);
    std::memset(to + last * bytes, 0, (s.kw * s.c - last) * bytes);
  });
}

void add_columns(const Shape& s, int64_t n, const float* columns, float* x) {
  std::memset(x, 0, n * s.h * s.w * s.c * sizeof(float));
  neighbourhoods(s, n, [&](int64_t row, int64_t pixel, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) x[pixel + j] += columns[row + j];
  });
}

void add(const float* from, float* to, size_t n) {
  for (size_t i = 0; i < n; ++i) to[i] += from[i];
}

// T(x, k, y) = <conv(x, k), y>: the one wanted, of the others
ffi::Future compute(ffi::ThreadPool& pool, const Shape& s, Wanted wanted, memory::data_type type,
                    std::shared_ptr<const Plan> plan, char* x, char* k, char* y) {
  const int64_t bytes = memory::data_type_size(type),
                workers = std::max<int64_t>(1, pool.num_threads());
  auto bytes_of = [=](Wanted side) { return side == wanted ? int64_t(sizeof(float)) : bytes; };
  const bool thin = s.thin(), dense = s.dense();
  const Side side = s.split(wanted);
  const auto of_k = wanted == K ? F32 : type;
  const memory::desc kernel = s.products() ? memory::desc({s.inputs(), s.m}, of_k, tag::ab)
                                           : memory::desc({s.m, s.c, s.kh, s.kw}, of_k, tag::hwio);
  const memory::desc ordered = dense ? kernel : plan->whole.k;
  const size_t size = ordered.get_size(), floats = size / sizeof(float);
  // the kernel in oneDNN's order; of its gradient each piece's, added in turn, so that no bit
  // depends on who computed what
  const bool sums = wanted == K && !dense;
  const std::shared_ptr<char> whole = kernel == ordered && !sums
                                          ? std::shared_ptr<char>(k, [](char*) {})
                                          : borrowed(size * (sums ? plan->pieces : 1));
  if (wanted != K && whole.get() != k) reorder(kernel, k, ordered, whole.get());
  auto piece = [=](int64_t i) {
    const bool last = plan->rest.primitive && i == plan->pieces - 1;
    const Part& part = last ? plan->rest : plan->whole;
    const int64_t images = part.y.get_dims()[0] / (thin ? s.oh * s.ow : 1);
    const int64_t start = i * plan->size, first = dense ? 0 : start;
    char* xs = x + bytes_of(X) * first * s.h * s.w * s.c;
    char* ys = y + bytes_of(Y) * first * s.oh * s.ow * s.m;
    char* ks = whole.get();
    if (dense) {
      xs += side == Outputs ? 0 : bytes_of(X) * start * (side == Rows ? s.c : 1);
      ys += side == Inputs ? 0 : bytes_of(Y) * start * (side == Rows ? s.m : 1);
      ks += side == Rows ? 0 : bytes_of(K) * start * (side == Inputs ? s.m : 1);
    }
    if (sums) ks += i * size;
    char* inputs = thin ? own(Columns, part.x.get_size()) : xs;
    if (thin && wanted != X) columns_of(s, images, bytes, xs, inputs);

    const memory mx(part.x, cpu(), inputs), mk(part.k, cpu(), ks), my(part.y, cpu(), ys);
    const memory rest(part.scratchpad, cpu(), own(Scratchpad, part.scratchpad.get_size()));
    std::unordered_map<int, memory> arguments{{DNNL_ARG_SCRATCHPAD, rest}};
    if (s.products()) {
      const auto [a, b, c] = wanted == Y   ? std::tie(mx, mk, my)
                             : wanted == X ? std::tie(my, mk, mx)
                                           : std::tie(mx, my, mk);
      arguments.insert({{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
    } else {
      arguments.insert({{wanted == X ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, mx},
                        {wanted == K ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, mk},
                        {wanted == Y ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, my}});
    }
    execute(part.primitive, arguments);

    if (wanted == X && thin)
      add_columns(s, images, reinterpret_cast<float*>(inputs), reinterpret_cast<float*>(xs));
  };
  auto done = [=] {
    if (wanted != K || whole.get() == k) return;
    float* sum = reinterpret_cast<float*>(whole.get());
    for (int64_t i = 1; sums && i < plan->pieces; ++i) add(sum + i * floats, sum, floats);
    reorder(ordered, sum, kernel, k);
  };
  return share(pool, plan->pieces, workers, piece, done);
}

ffi::Future convolve(ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second,
                    ffi::Result<ffi::AnyBuffer> out, int64_t wanted,
                    ffi::Span<const int64_t> window) {
  const ffi::AnyBuffer& x = wanted == X ? *out : first;
  const ffi::AnyBuffer& k = wanted == K ? *out : wanted == X ? first : second;
  const ffi::AnyBuffer& y = wanted == Y ? *out : second;
  auto ended = [](ffi::Error error) {
    ffi::Promise promise;
    error.success() ? promise.SetAvailable() : promise.SetError(error);
    return ffi::Future(promise);
  };
  if (x.element_count() == 0 || y.element_count() == 0) {
    std::memset(out->untyped_data(), 0, out->size_bytes());
    return ended(ffi::Error::Success());
  }
  const auto xd = x.dimensions(), kd = k.dimensions(), yd = y.dimensions();
  const Shape s{xd[0], xd[1],     xd[2],     xd[3],     kd[0],     kd[1],     yd[1],    yd[2],
                yd[3], window[0], window[1], window[2], window[3], window[4], window[5]};
  const bool half = first.element_type() == ffi::DataType::BF16;
  if ((!half && first.element_type() != ffi::DataType::F32) ||
      second.element_type() != first.element_type() || out->element_type() != ffi::DataType::F32)
    return ended(ffi::Error::InvalidArgument("expected float32 or bfloat16, to float32"));
  const auto type = half ? memory::data_type::bf16 : F32;
  std::vector<int64_t> key{wanted, static_cast<int64_t>(type), pool.num_threads()};
  const auto* sizes = &s.n;
  key.insert(key.end(), sizes, sizes + sizeof(Shape) / sizeof(int64_t));

  static std::mutex finding;
  static std::map<std::vector<int64_t>, std::shared_ptr<const Plan>> plans;
  Alone alone;
  try {
    std::shared_ptr<const Plan> found;
    {
      std::lock_guard<std::mutex> lock(finding);
      auto& known = plans[key];
      if (!known)
        known = std::make_shared<const Plan>(
            plan(s, Wanted(wanted), type, std::max<int64_t>(1, pool.num_threads())));
      found = known;
    }
    return compute(pool, s, Wanted(wanted), type, found, static_cast<char*>(x.untyped_data()),
                   static_cast<char*>(k.untyped_data()), static_cast<char*>(y.untyped_data()));
  } catch (const std::exception& e) {
    return ended(ffi::Error::Internal(e.what()));
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxvaeConvolve, convolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("wanted")
                                  .Attr<ffi::Span<const int64_t>>("window"));
