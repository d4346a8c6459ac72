#include "p2p-server.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "p2p-frames.h"

namespace ckpt {
namespace {

constexpr const char* kServe = "serve a peer's read";
// Far more than there are processes that read: what is above comes from none of ours.
constexpr size_t kReadersMax = 4096;
constexpr size_t kWantedMax = 65536;

}  // namespace

void P2pServer::share(const std::shared_ptr<Buffer>& buffer) {
  std::lock_guard lock(mutex_);
  shared_.emplace(buffer.get(), buffer);
}

void P2pServer::unshare(const Buffer& buffer) {
  std::lock_guard lock(mutex_);
  shared_.erase(&buffer);
}

std::shared_ptr<Buffer> P2pServer::find(uint64_t address, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  for (const auto& [buffer, kept] : shared_) {
    const uint64_t first = reinterpret_cast<uint64_t>(buffer->address());
    if (address < first || address - first > buffer->bytes()) continue;
    if (bytes <= buffer->bytes() - (address - first)) return kept;
  }
  return nullptr;
}

bool P2pServer::step() {
  try {
    receive();
    end_sends();
    lose_failed();
    return answer_from_file();
  } catch (const std::exception&) {
    // the worker ends, or there is no memory: readers see that the connection does not answer
    return false;
  }
}

void P2pServer::receive() {
  const auto post = [&](void* to, size_t bytes, uint64_t tag) {
    return worker_.receive(worker_.anyone(), kServe, [&](const Ucx::RequestParams& params) {
      return ucx_.tag_recv_nbx(worker_.worker(), to, bytes, tag, kReadTag | kReaderTag, &params);
    });
  };
  while (meeting_ == nullptr || meeting_->completion.done()) {
    if (meeting_ != nullptr && meeting_->completion.status() == CKPT_OK)
      meet(greeting_.data(), meeting_->received.length);
    meeting_ = post(greeting_.data(), greeting_.size(), kReaderTag);
  }
  for (size_t i = 0; i < kReads; i++) {
    while (reading_[i] == nullptr || reading_[i]->completion.done()) {
      const bool good = reading_[i] != nullptr && reading_[i]->completion.status() == CKPT_OK &&
                        reading_[i]->received.length == sizeof(ReadMessage);
      if (good) answer(reads_[i]);
      reading_[i] = post(&reads_[i], sizeof reads_[i], kReadTag);
    }
  }
}

void P2pServer::meet(const uint8_t* message, size_t length) {
  ReaderMessage head;
  if (length < sizeof head) return;
  std::memcpy(&head, message, sizeof head);
  const auto known = readers_.find(head.reader);
  if (length == sizeof head && known != readers_.end()) forget(known);
  if (length == sizeof head || known != readers_.end() || readers_.size() >= kReadersMax) return;
  try {
    readers_[head.reader].peer = worker_.connect({message + sizeof head, message + length});
  } catch (const Error&) {  // it will not be answered
    readers_.erase(head.reader);
  }
}

void P2pServer::answer(const ReadMessage& message) {
  const auto reader = readers_.find(message.reader);
  if (reader == readers_.end()) return;
  const auto buffer = find(message.address, message.bytes);
  if (buffer == nullptr) {
    refuse(message, Error(CKPT_ERR_IO, "the peer does not share what was to be read"));
  } else if (buffer->file() == nullptr) {
    send(message, reinterpret_cast<const void*>(message.address), message.bytes, buffer);
  } else if (message.bytes > kReadBytesMax || wanted_ == kWantedMax) {
    refuse(message, Error(CKPT_ERR_INVALID, "more than the peer reads of a file at a time"));
  } else {
    reader->second.wanted.push_back({message, buffer});
    wanted_++;
  }
}

P2pServer::Chunk* P2pServer::free_chunk() {
  for (Chunk& chunk : chunks_) {
    if (chunk.bytes == nullptr) chunk.bytes = std::make_shared<std::vector<uint8_t>>(kReadBytesMax);
    if (chunk.bytes.use_count() == 1) return &chunk;
  }
  return nullptr;
}

bool P2pServer::may_have_chunk(uint64_t reader) const {
  const auto has = [&](const Chunk& chunk) {
    return chunk.bytes.use_count() > 1 && chunk.reader == reader;
  };
  return std::count_if(chunks_.begin(), chunks_.end(), has) < ptrdiff_t{kChunksPerReader};
}

// Whose turn it is: of those that want something and may have a chunk, the first one after the last.
P2pServer::Readers::iterator P2pServer::next_reader() {
  auto reader = readers_.upper_bound(turn_);
  for (size_t i = 0; i < readers_.size(); i++, reader++) {
    if (reader == readers_.end()) reader = readers_.begin();
    if (!reader->second.wanted.empty() && may_have_chunk(reader->first)) return reader;
  }
  return readers_.end();
}

// One chunk, so that what has come meanwhile does not wait for more than that. When none may be had, a
// send that ends makes the thread come back.
bool P2pServer::answer_from_file() {
  if (wanted_ == 0) return false;
  const auto reader = next_reader();
  if (reader == readers_.end()) return false;
  Chunk* chunk = free_chunk();
  if (chunk == nullptr) return false;
  const Wanted next = std::move(reader->second.wanted.front());
  reader->second.wanted.pop_front();
  wanted_--;
  turn_ = chunk->reader = reader->first;
  const ReadMessage& message = next.message;
  const uint64_t first = reinterpret_cast<uint64_t>(next.buffer->address());
  uint8_t* to = chunk->bytes->data();
  try {
    next.buffer->file()->read_leased(message.address - first, message.bytes, to);
  } catch (const Error& error) {
    refuse(message, error);
    return true;
  }
  send(message, to, message.bytes, chunk->bytes);
  return true;
}

void P2pServer::lose(Readers::iterator reader) {
  worker_.disconnect(reader->second.peer);
  forget(reader);
}

// What UCX has of the connection stays: UCX 1.13 has crashed in its progress (an event of a TCP endpoint
// that it had freed) where both ends were closed at the same time.
P2pServer::Readers::iterator P2pServer::forget(Readers::iterator reader) {
  wanted_ -= reader->second.wanted.size();
  return readers_.erase(reader);
}

// Of a process that is gone, which asks for nothing that it could not be sent.
void P2pServer::lose_failed() {
  const uint64_t failures = worker_.failures();
  if (std::exchange(failures_, failures) == failures) return;
  for (auto reader = readers_.begin(); reader != readers_.end();)
    reader = worker_.failed(reader->second.peer) ? forget(reader) : std::next(reader);
}

void P2pServer::refuse(const ReadMessage& message, const Error& error) {
  const auto refusal =
      std::make_shared<const std::vector<uint8_t>>(frame_refusal(error, message.bytes));
  send(message, refusal->data(), refusal->size(), refusal);
}

void P2pServer::send(const ReadMessage& message, const void* from, uint64_t bytes,
                     std::shared_ptr<const void> keeps) {
  const auto reader = readers_.find(message.reader);
  if (reader == readers_.end()) return;  // it went while it waited
  UcxWorker::Peer* peer = reader->second.peer;
  const uint64_t number = message.number & ~(kReadTag | kReaderTag);
  try {
    const auto pending = worker_.send(peer, kServe, [&](const Ucx::RequestParams& params) {
      return ucx_.tag_send_nbx(peer->endpoint, from, bytes, number, &params);
    });
    sends_.push_back({pending, std::move(keeps), message.reader});
  } catch (const Error&) {
    lose(reader);
  }
}

void P2pServer::end_sends() {
  for (auto send = sends_.begin(); send != sends_.end();) {
    if (!send->pending->completion.done()) {
      send++;
      continue;
    }
    const auto reader = readers_.find(send->reader);
    if (send->pending->completion.status() != CKPT_OK && reader != readers_.end()) lose(reader);
    send = sends_.erase(send);
  }
}

}  // namespace ckpt
