// Strided convolutions of NHWC images with HWIO kernels by oneDNN 3, as an XLA foreign function:
// the output y of x and k, or the gradient by x or by k. XLA's own threads share the batch in
// pieces, each of which oneDNN computes on one thread: so nobody waits for threads that others use.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
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
constexpr auto F32 = memory::data_type::f32;
constexpr int64_t kPiece = 1 << 19;  // bytes of x and y, half a core's second cache
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

// f(i, worker) for all i < n, by this thread and those of XLA's that are free
template <typename F>
void share(ffi::ThreadPool& pool, int64_t n, int64_t workers, const F& f) {
  struct Shared {
    std::atomic<int64_t> next{0}, worker{0};
    int64_t done = 0;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable all;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, n, &f] {  // one that comes late finds nothing and does not touch f
    const int64_t worker = shared->worker++;
    int64_t mine = 0;
    std::exception_ptr error;
    for (int64_t i; (i = shared->next++) < n; ++mine) try {
        f(i, worker);
      } catch (...) {
        error = std::current_exception();
      }
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if (error) shared->error = error;
    if ((shared->done += mine) == n) shared->all.notify_one();
  };
  for (int64_t w = 1; w < std::min(n, workers); ++w) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->done == n; });
  if (shared->error) std::rethrow_exception(shared->error);
}

// memory of this thread's own, kept for the next call
enum Use { Ordered, Summand, Columns, Image, Scratchpad, Uses };
void* own(Use use, size_t bytes) {
  struct Buffer {
    std::unique_ptr<void, decltype(&std::free)> data{nullptr, &std::free};
    size_t size = 0;
  };
  thread_local Buffer buffers[Uses];
  Buffer& buffer = buffers[use];
  if (buffer.size < bytes) {
    buffer.size = (bytes + 63) / 64 * 64;
    buffer.data.reset(std::aligned_alloc(64, buffer.size));
  }
  return buffer.data.get();
}

struct Shape {
  int64_t n, h, w, c, kh, kw, oh, ow, m, sh, sw, top, left, bottom, right;
  int64_t inputs() const { return kh * kw * c; }  // of an output
  bool dense() const { return kh * kw * sh * sw == 1; }
  bool thin() const { return !dense() && inputs() <= kThin; }
  bool products() const { return dense() || thin(); }
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

// The work on some images or, for the gradient of a dense layer's kernel, on some of its columns.
struct Part {
  dnnl::primitive primitive;
  memory::desc x, k, y, scratchpad;
};

// Products of rows: y = x k, x = y k^T, k = x^T y.
Part product(const Shape& s, Wanted wanted, int64_t n, memory::data_type type,
             const dnnl::primitive_attr& attr) {
  const bool columns = wanted == K && s.dense();
  const int64_t rows = (columns ? s.n : n) * s.oh * s.ow, inputs = columns ? n : s.inputs();
  const memory::desc y({rows, s.m}, type, tag::ab);
  const memory::desc x({rows, inputs}, wanted == X && s.thin() ? F32 : type,
                       memory::dims{s.inputs(), 1});
  const memory::desc k({inputs, s.m}, wanted == K ? F32 : type, tag::ab);
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
  const memory::desc x({n, s.c, s.h, s.w}, type, tag::nhwc),
      y({n, s.m, s.oh, s.ow}, type, tag::nhwc);
  const memory::dims sizes{s.m, s.c, s.kh, s.kw}, stride{s.sh, s.sw}, before{s.top, s.left};
  const memory::dims after{s.bottom, s.right};
  const memory::desc any(sizes, type, tag::any), full(sizes, F32, tag::any);
  const memory::desc &k = order && wanted != K ? *order : any, &sum = order ? *order : full;
  convolution_forward::primitive_desc forward(cpu(), prop_kind::forward_training, direct, x, k, y,
                                              stride, before, after, attr);
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
  const int64_t all = wanted == K && s.dense() ? s.c : s.n;
  const int64_t most = (all + workers - 1) / workers;
  const int64_t bytes = memory::data_type_size(type) * (s.h * s.w * s.c + s.oh * s.ow * s.m);
  // an oneDNN gradient by the kernel costs the same for few images as for many
  const int64_t size =
      wanted == K && !s.thin() ? most : std::clamp<int64_t>(kPiece / bytes, 1, most);
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
void compute(ffi::ThreadPool& pool, const Shape& s, Wanted wanted, memory::data_type type,
             const Plan& plan, char* x, char* k, char* y) {
  const int64_t bytes = memory::data_type_size(type),
                workers = std::max<int64_t>(1, pool.num_threads());
  const bool thin = s.thin(), columns = wanted == K && s.dense();
  const memory::desc kernel = s.products() ? memory::desc({s.inputs(), s.m}, type, tag::ab)
                                           : memory::desc({s.m, s.c, s.kh, s.kw}, type, tag::hwio);
  const memory::desc ordered = columns ? memory::desc({s.c, s.m}, F32, tag::ab) : plan.whole.k;
  const size_t size = ordered.get_size(), floats = size / sizeof(float);
  // the kernel in oneDNN's order; of its gradient, a sum for each worker
  const bool sums = wanted == K && !columns;
  char* whole = kernel == ordered && !sums
                    ? k
                    : static_cast<char*>(own(Ordered, size * (sums ? workers : 1)));
  std::vector<float*> sum(workers, nullptr);
  if (wanted != K && whole != k) reorder(kernel, k, ordered, whole);
  share(pool, plan.pieces, workers, [&](int64_t i, int64_t worker) {
    Alone alone;
    const bool last = plan.rest.primitive && i == plan.pieces - 1;
    const Part& part = last ? plan.rest : plan.whole;
    const int64_t images = columns ? s.n : part.y.get_dims()[0] / (s.products() ? s.oh * s.ow : 1);
    const int64_t start = i * plan.size, first = columns ? 0 : start;
    char* xs = x + bytes * (columns ? start : first * s.h * s.w * s.c);
    char* ys = y + bytes * first * s.oh * s.ow * s.m;
    char* ks = whole + (columns ? start * s.m * sizeof(float) : 0);
    if (sums) ks = sum[worker] ? static_cast<char*>(own(Summand, size)) : whole + worker * size;
    void* inputs = thin ? own(Columns, part.x.get_size()) : xs;
    if (thin && wanted != X) columns_of(s, images, bytes, xs, static_cast<char*>(inputs));

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

    if (sums) {
      float* piece = reinterpret_cast<float*>(ks);
      if (sum[worker])
        add(piece, sum[worker], floats);
      else
        sum[worker] = piece;
    } else if (wanted == X && thin) {
      const int64_t count = images * s.h * s.w * s.c;
      float* sum = static_cast<float*>(type == F32 ? xs : own(Image, count * sizeof(float)));
      add_columns(s, images, static_cast<const float*>(inputs), sum);
      const memory::desc flat({count}, F32, tag::a), stored({count}, type, tag::a);
      if (type != F32) reorder(flat, sum, stored, xs);
    }
  });
  if (wanted != K || whole == k) return;
  const auto used = std::remove(sum.begin(), sum.end(), nullptr);
  for (auto other = sum.begin() + 1; other < used; ++other) add(*other, sum[0], floats);
  reorder(ordered, sums ? sum[0] : reinterpret_cast<float*>(whole), kernel, k);
}

ffi::Error convolve(ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second,
                    ffi::Result<ffi::AnyBuffer> out, int64_t wanted,
                    ffi::Span<const int64_t> window) {
  const ffi::AnyBuffer& x = wanted == X ? *out : first;
  const ffi::AnyBuffer& k = wanted == K ? *out : wanted == X ? first : second;
  const ffi::AnyBuffer& y = wanted == Y ? *out : second;
  if (x.element_count() == 0 || y.element_count() == 0) {
    std::memset(out->untyped_data(), 0, out->size_bytes());
    return ffi::Error::Success();
  }
  const auto xd = x.dimensions(), kd = k.dimensions(), yd = y.dimensions();
  const Shape s{xd[0], xd[1],     xd[2],     xd[3],     kd[0],     kd[1],     yd[1],    yd[2],
                yd[3], window[0], window[1], window[2], window[3], window[4], window[5]};
  const auto type = x.element_type() == ffi::DataType::BF16 ? memory::data_type::bf16 : F32;
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
    compute(pool, s, Wanted(wanted), type, *found, static_cast<char*>(x.untyped_data()),
            static_cast<char*>(k.untyped_data()), static_cast<char*>(y.untyped_data()));
  } catch (const std::exception& e) {
    return ffi::Error::Internal(e.what());
  }
  return ffi::Error::Success();
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
