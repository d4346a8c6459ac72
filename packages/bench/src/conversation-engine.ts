/** The engine's thread of the conversation bench: replies to every message as a worker of D4 does when all goes well. */
import { pickleNone } from '@ckpt/core/engine/pickle-writer'
import { ZmqContext, type ZmqSocket, zmqPoll } from '@ckpt/cuda/zmq'
import { type EngineTask, Heard } from './conversation-types.ts'

declare const self: Worker

const SILENCE_MS_MAX = 60_000
/** The first `None` ends the lists, the second one the conversation. */
const NONES = 2
const SUCCESS = new Uint8Array(0)
const NONE = Buffer.from(pickleNone())

self.onmessage = ({ data }: MessageEvent<EngineTask>) => {
  const context = new ZmqContext()
  try {
    const socket = context.socket('REP')
    socket.setOption('linger', SILENCE_MS_MAX)
    socket.connect(data.address)
    converse(socket, new Heard(data.heard))
  } finally {
    context.close()
  }
  postMessage('left')
}

function converse(socket: ZmqSocket, heard: Heard): void {
  for (let nones = 0; nones < NONES; ) {
    if (!zmqPoll([socket], SILENCE_MS_MAX)[0]) throw new Error('the daemon is silent')
    const [body = SUCCESS] = socket.recv() ?? []
    socket.send([SUCCESS])
    // only now: the daemon's time ends with the reply
    heard.add(new Bun.CryptoHasher('sha256').update(body).digest())
    if (NONE.equals(body)) nones++
  }
}
