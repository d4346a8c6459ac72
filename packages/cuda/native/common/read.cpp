#include "read.h"

#include <algorithm>

#include "init.h"
#include "threads.h"

namespace ckpt {
namespace {

// Large enough for the disk and the system call to cost nothing, small enough for several threads
// to share a piece.
constexpr uint64_t kChunkBytes = 4ull << 20;
constexpr uint64_t kThrottledChunkBytesMin = 4096;
constexpr uint64_t kThrottledChunksPerSecond = 200;

uint64_t chunk_bytes_at(uint64_t rate) {
  if (rate == 0) return kChunkBytes;
  return std::clamp(rate / kThrottledChunksPerSecond, kThrottledChunkBytesMin, kChunkBytes);
}

uint64_t bytes_of(const std::vector<Read::Piece>& pieces) {
  uint64_t bytes = 0;
  for (const Read::Piece& piece : pieces) bytes += piece.bytes;
  return bytes;
}

ReadThreads::Kind kind_of(const std::vector<Read::Piece>& pieces) {
  if (pieces.empty()) return ReadThreads::Kind::disk;
  File& first = *pieces.front().file;
  if (first.on_tmpfs()) return ReadThreads::Kind::tmpfs;
  return first.direct() ? ReadThreads::Kind::direct : ReadThreads::Kind::disk;
}

}  // namespace

Read::Read(std::vector<Piece> pieces, uint32_t threads_least, uint32_t threads_most,
           std::shared_ptr<Signal> signal)
    : pieces_(std::move(pieces)),
      pieces_total_(static_cast<uint32_t>(pieces_.size())),
      signal_(std::move(signal)),
      bytes_total_(bytes_of(pieces_)),
      rate_(read_bytes_per_second()),
      chunk_bytes_(chunk_bytes_at(rate_)),
      working_(threads_least, threads_most, bytes_total_, kind_of(pieces_)) {
  for (const Piece& piece : pieces_) bytes_left_.push_back(piece.bytes);
  advance_prefix_locked();
}

std::shared_ptr<Read> Read::start(std::vector<Piece> pieces, uint32_t threads_least,
                                  uint32_t threads_most, std::shared_ptr<Signal> signal) {
  std::shared_ptr<Read> read(
      new Read(std::move(pieces), threads_least, threads_most, std::move(signal)));
  const uint64_t chunks = read->bytes_total_ / read->chunk_bytes_ + read->pieces_.size();
  const uint32_t count = static_cast<uint32_t>(std::clamp<uint64_t>(chunks, 1, threads_most));
  read->threads_inside_ = count;
  // The threads do not keep the object alive: close() joins them.
  Read* self = read.get();
  for (uint32_t i = 0; i < count; i++) {
    try {
      read->threads_.push_back(start_thread("ckpt-read", [self, i] { self->work(i); }));
    } catch (...) {
      if (i == 0) throw;
      for (; i < count; i++) read->thread_leaves();
    }
  }
  return read;
}

Read::~Read() { close(); }

void Read::work(uint32_t thread) {
  Chunk chunk;
  BounceBuffer bounce;
  while (next_chunk(thread, chunk)) {
    const Piece& piece = pieces_[chunk.piece];
    try {
      piece.file->read_bulk(piece.file_offset + chunk.offset, chunk.bytes,
                            piece.buffer->address() + piece.buffer_offset + chunk.offset, bounce);
      if (rate_ > 0) pace(chunk.bytes);
      chunk_done(chunk);
    } catch (const Error& error) {
      chunk_failed(chunk, error.status(), error.text());
    } catch (const std::exception& error) {
      chunk_failed(chunk, CKPT_ERR_IO, error.what());
    }
  }
  thread_leaves();
}

void Read::pace(uint64_t bytes) {
  std::chrono::steady_clock::time_point until;
  {
    std::lock_guard lock(mutex_);
    const std::chrono::duration<double> cost(static_cast<double>(bytes) /
                                             static_cast<double>(rate_));
    paced_until_ += std::chrono::duration_cast<std::chrono::steady_clock::duration>(cost);
    until = paced_until_;
  }
  std::this_thread::sleep_until(until);
}

// Waits while this thread may not work. False: there is nothing more to do.
bool Read::next_chunk(uint32_t thread, Chunk& chunk) {
  std::unique_lock lock(mutex_);
  parked_.wait(lock, [&] {
    return failure_ != CKPT_OK || exhausted_locked() || working_.may_work(thread);
  });
  if (failure_ != CKPT_OK || exhausted_locked()) return false;
  chunk = {next_piece_, next_offset_,
           std::min(chunk_bytes_, pieces_[next_piece_].bytes - next_offset_)};
  next_offset_ += chunk.bytes;
  if (exhausted_locked()) parked_.notify_all();
  return true;
}

// Whether every chunk has been taken.
bool Read::exhausted_locked() {
  while (next_piece_ < pieces_.size() && next_offset_ == pieces_[next_piece_].bytes) {
    next_piece_++;
    next_offset_ = 0;
  }
  return next_piece_ == pieces_.size();
}

void Read::advance_prefix_locked() {
  while (pieces_prefix_ < pieces_total_ && bytes_left_[pieces_prefix_] == 0) pieces_prefix_++;
}

std::vector<Read::Waiter> Read::take_served_locked() {
  const auto waits = [this](const Waiter& waiter) {
    return !completion_.done() && waiter.pieces > pieces_prefix_;
  };
  const auto served = std::stable_partition(waiters_.begin(), waiters_.end(), waits);
  std::vector<Waiter> taken(std::make_move_iterator(served),
                            std::make_move_iterator(waiters_.end()));
  waiters_.erase(served, waiters_.end());
  return taken;
}

void Read::chunk_done(const Chunk& chunk) {
  bool grown;
  std::vector<Waiter> served;
  {
    std::lock_guard lock(mutex_);
    const uint32_t before = pieces_prefix_;
    bytes_left_[chunk.piece] -= chunk.bytes;
    bytes_done_ += chunk.bytes;
    if (working_.done(chunk.bytes)) parked_.notify_all();
    advance_prefix_locked();
    grown = pieces_prefix_ > before;
    if (grown) served = take_served_locked();
  }
  if (grown && signal_ != nullptr) signal_->raise(0);
  for (const Waiter& waiter : served) waiter.signal->raise(0);
}

void Read::chunk_failed(const Chunk& chunk, ckpt_status status, const std::string& text) {
  std::lock_guard lock(mutex_);
  if (failure_ != CKPT_OK) return;
  failure_ = status;
  failure_text_ = text;
  failed_piece_ = chunk.piece;
  parked_.notify_all();
}

void Read::thread_leaves() {
  ckpt_status status;
  std::string text;
  std::vector<Piece> pieces;
  {
    std::lock_guard lock(mutex_);
    if (--threads_inside_ > 0) return;
    status = failure_;
    text = failure_text_;
    pieces.swap(pieces_);
  }
  pieces.clear();
  completion_.complete(status, std::move(text));
  std::vector<Waiter> served;
  {
    std::lock_guard lock(mutex_);
    served = take_served_locked();
  }
  if (signal_ != nullptr) signal_->raise(0);
  for (const Waiter& waiter : served) waiter.signal->raise(0);
}

void Read::query(ckpt_read_progress& progress) {
  // First, so that an end is never reported with the figures from before it.
  const ckpt_status state = completion_.status();
  std::lock_guard lock(mutex_);
  progress = {bytes_total_,
              bytes_done_,
              pieces_total_,
              pieces_prefix_,
              static_cast<uint32_t>(state),
              failed_piece_};
}

void Read::wait(Signal* signal, uint32_t timeout_ms) {
  completion_.wait(signal, timeout_ms, "read");
}

void Read::notify(uint32_t pieces, std::shared_ptr<Signal> signal) {
  std::vector<Waiter> served;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(waiters_, [&](const Waiter& waiter) { return waiter.signal == signal; });
    waiters_.push_back({pieces, std::move(signal)});
    served = take_served_locked();
  }
  for (const Waiter& waiter : served) waiter.signal->raise(0);
}

void Read::close() {
  {
    std::lock_guard lock(mutex_);
    if (failure_ == CKPT_OK && next_piece_ < pieces_.size()) {
      failure_ = CKPT_ERR_ABORTED;
      failure_text_ = "the read was destroyed";
      failed_piece_ = next_piece_;
      parked_.notify_all();
    }
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace ckpt
