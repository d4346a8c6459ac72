// Reads by messages, for networks that cannot read by themselves: the reader asks, the owner's
// worker thread sends.
//
// UCX has such a thing itself (ucp_get over TCP or shared memory), but there the owner's process is
// ended when a reader goes in the middle of a read ("Fatal: unexpected error: Endpoint timeout",
// 1.13), and UCX_PROTO_ENABLE=y ends the reader's. What goes in these messages goes eagerly, so
// that nothing has to be answered to a process that is gone.
//
// What maps a file is always read so: a network card, or a process that reads this one, would not let
// go of its pages when the file's lease is broken. The thread reads the file under its lease into
// chunks of its own (File::read_leased), which are sent. Readers have their turns, and none has more
// than its share of the chunks: what one that stands still has been sent keeps nobody else waiting.
#pragma once

#include <array>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "ucx-worker.h"

namespace ckpt {

// Tags of messages. Data has the number that the reader has given it, below these.
constexpr uint64_t kReadTag = 1ull << 62;
constexpr uint64_t kReaderTag = 1ull << 63;

// Of one read: a peer brings no more of a file at a time.
constexpr uint64_t kReadBytesMax = 4ull << 20;

struct ReadMessage {
  uint64_t reader;
  uint64_t number;
  uint64_t address;
  uint64_t bytes;
};

// Then the worker's address. Nothing then: the reader leaves, and another one may have its place; UCX
// does not tell that it has closed its end.
struct ReaderMessage {
  uint64_t reader;  // random
};
constexpr size_t kReaderMessageMax = 64u << 10;

class P2pServer {
 public:
  explicit P2pServer(UcxWorker& worker) : worker_(worker) {}
  void share(const std::shared_ptr<Buffer>& buffer);
  void unshare(const Buffer& buffer);
  // By the worker's thread, when something has come. Returns whether there is more to do at once.
  bool step();

 private:
  struct Send {
    UcxWorker::Pending pending;
    std::shared_ptr<const void> keeps;
    uint64_t reader;
  };
  // From a file.
  struct Wanted {
    ReadMessage message;
    std::shared_ptr<Buffer> buffer;
  };
  struct ReaderState {
    UcxWorker::Peer* peer = nullptr;
    std::deque<Wanted> wanted;
  };
  using Readers = std::map<uint64_t, ReaderState>;
  struct Chunk {
    std::shared_ptr<std::vector<uint8_t>> bytes;  // free when nobody else has it
    uint64_t reader = 0;
  };
  void receive();
  void meet(const uint8_t* message, size_t length);
  void answer(const ReadMessage& message);
  bool answer_from_file();
  Readers::iterator next_reader();
  bool may_have_chunk(uint64_t reader) const;
  Chunk* free_chunk();
  void lose(Readers::iterator reader);
  Readers::iterator forget(Readers::iterator reader);
  void lose_failed();
  void refuse(const ReadMessage& message, const Error& error);
  void send(const ReadMessage& message, const void* from, uint64_t bytes,
            std::shared_ptr<const void> keeps);
  void end_sends();
  std::shared_ptr<Buffer> find(uint64_t address, uint64_t bytes);

  UcxWorker& worker_;
  const Ucx& ucx_ = Ucx::get();
  std::mutex mutex_;
  std::map<const Buffer*, std::shared_ptr<Buffer>> shared_;

  // Of the worker's thread only.
  static constexpr size_t kReads = 16;
  std::array<ReadMessage, kReads> reads_{};
  std::array<UcxWorker::Pending, kReads> reading_;
  std::vector<uint8_t> greeting_ = std::vector<uint8_t>(kReaderMessageMax);
  UcxWorker::Pending meeting_;
  Readers readers_;
  uint64_t turn_ = 0;  // the reader that was answered from a file last
  std::list<Send> sends_;
  size_t wanted_ = 0;  // of all readers
  uint64_t failures_ = 0;  // of the worker's peers, as far as they were looked at
  // One is sent while the next one is read.
  static constexpr size_t kChunks = 8, kChunksPerReader = 2;
  std::array<Chunk, kChunks> chunks_;
};

}  // namespace ckpt
