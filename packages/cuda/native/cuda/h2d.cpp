#include "h2d.h"

#include <algorithm>

namespace ckpt {
namespace {

// Calls `piece` with what lies in one registration: an offset in the copy, the address there and
// a number of bytes.
template <class Piece>
void cut(const Buffer& from, uint64_t from_offset, uint64_t bytes, Piece&& piece) {
  const uint64_t piece_bytes = from.pin_piece_bytes();
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t at = from_offset + done;
    const uint64_t count = std::min(bytes - done, piece_bytes - at % piece_bytes);
    piece(done, from.address() + at, count);
    done += count;
  }
}

void enqueue_one(cudaStream_t stream, void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream),
             "copying to the device");
}

void enqueue_row(cudaStream_t stream, uint8_t* to, const Buffer& from, uint64_t from_offset,
                 uint64_t bytes) {
  cut(from, from_offset, bytes, [&](uint64_t offset, const uint8_t* source, uint64_t count) {
    enqueue_one(stream, to + offset, source, count);
  });
}

// Rows from `at` on, at most `height`, that end in the registration in which the first begins.
uint64_t rows_of_one_registration(uint64_t piece_bytes, uint64_t at, const CopyRows& rows,
                                  uint64_t height) {
  const uint64_t room = piece_bytes - at % piece_bytes;
  if (room < rows.width) return 0;
  return std::min(height, (room - rows.width) / rows.from_pitch + 1);
}

// Where the kernel is faster. Rows of 96, 192, 512, 1024 and 3072 bytes, each an eighth of the
// pitch, 64 pieces a launch and nothing beside them: 30, 37, 45, 46 and 48 GB/s,
// cudaMemcpy2DAsync 20, 31, 42, 49 and 53 (an H200). Beside other copies both get closer to the
// wire, the kernel by 1 to 3 % of it: docs/bench.md.
constexpr uint64_t kKernelWidthMax = 512;

bool for_kernel(const CopyRows& rows) { return rows.width <= kKernelWidthMax; }

#if CUDART_VERSION >= 12080
// CUDA 12.8 has brought it.
bool takes_batches() {
  static const bool takes = [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12080;
  }();
  return takes;
}
#endif

}  // namespace

// As many rows together as lie in one registration; one by one those that lie in two, and those
// whose pitch is more than CUDA takes: they are few.
void enqueue_h2d(cudaStream_t stream, uint8_t* to, const Buffer& from, const CopyRows& rows,
                 const H2dMeans& means) {
  const bool together = std::max(rows.to_pitch, rows.from_pitch) <= means.pitch_max;
  for (uint64_t row = 0; row < rows.height;) {
    const uint64_t at = rows.from_offset + row * rows.from_pitch;
    uint8_t* target = to + row * rows.to_pitch;
    const uint64_t count =
        together ? rows_of_one_registration(from.pin_piece_bytes(), at, rows, rows.height - row)
                 : 0;
    if (count < 2) {
      enqueue_row(stream, target, from, at, rows.width);
      row++;
      continue;
    }
    check_cuda(cudaMemcpy2DAsync(target, rows.to_pitch, from.address() + at, rows.from_pitch,
                                 rows.width, count, cudaMemcpyHostToDevice, stream),
               "copying rows to the device");
    row += count;
  }
}

std::shared_ptr<File::Reader> enter_file(const Buffer& buffer) {
  if (!buffer.file()) return nullptr;
  std::shared_ptr<File::Reader> reader = buffer.file()->enter();
  if (!reader) buffer.file()->require_lease();
  return reader;
}

H2dMeans h2d_means(uint32_t device) {
  int pitch_max = 0;
  check_cuda(cudaDeviceGetAttribute(&pitch_max, cudaDevAttrMaxPitch, static_cast<int>(device)),
             "cudaDeviceGetAttribute");
  return {static_cast<uint64_t>(pitch_max), reads_host_memory(device)};
}

void H2dBatch::add(uint8_t* to, const Buffer& from, const CopyRows& rows) {
  std::shared_ptr<File::Reader>& reader = readers_[from.file().get()];
  if (!reader) reader = enter_file(from);
  if (rows.height > 1) {
    if (means_.reads_host && for_kernel(rows)) {
      rows_.push_back({to, from.address() + rows.from_offset, rows.to_pitch, rows.from_pitch,
                       rows.width, rows.height});
    } else {
      others_.push_back({to, &from, rows});
    }
    return;
  }
  cut(from, rows.from_offset, rows.width,
      [&](uint64_t offset, const uint8_t* source, uint64_t count) {
    targets_.push_back(to + offset);
    sources_.push_back(source);
    sizes_.push_back(count);
  });
}

std::vector<std::shared_ptr<File::Reader>> H2dBatch::readers() const {
  std::vector<std::shared_ptr<File::Reader>> readers;
  for (const auto& [file, reader] : readers_) readers.push_back(reader);
  return readers;
}

void H2dBatch::enqueue(cudaStream_t stream) {
  enqueue_pieces(stream);
  enqueue_rows(stream, rows_);
  for (const Other& other : others_) {
    enqueue_h2d(stream, other.to, *other.from, other.rows, means_);
  }
}

void H2dBatch::enqueue_pieces(cudaStream_t stream) {
#if CUDART_VERSION >= 12080
  if (takes_batches() && sizes_.size() > 1) {
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t first = 0;  // from this copy on the attributes are those
#if CUDART_VERSION >= 13000
    const cudaError_t error =
        cudaMemcpyBatchAsync(targets_.data(), sources_.data(), sizes_.data(), sizes_.size(),
                             &attributes, &first, 1, stream);
#else
    size_t failed = 0;
    const cudaError_t error = cudaMemcpyBatchAsync(
        targets_.data(), const_cast<void**>(sources_.data()), sizes_.data(), sizes_.size(),
        &attributes, &first, 1, &failed, stream);
#endif
    check_cuda(error, "copying a batch to the device");
    return;
  }
#endif
  for (size_t i = 0; i < sizes_.size(); i++) {
    enqueue_one(stream, targets_[i], sources_[i], sizes_[i]);
  }
}

}  // namespace ckpt
