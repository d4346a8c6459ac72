/** For tests: an engine's worker that notes what it is sent and replies when it is told to. */
import { readEngineMessage } from '@ckpt/core'
import type { ZmqContext } from '@ckpt/cuda'

const LOOK_MS = 2

/** Absent: an empty one, which says that all is well. */
type Reply = Uint8Array | void

export interface ScriptedWorker {
  /** Types of the messages in the order in which they came. */
  readonly seen: string[]
  close(): void
}

/** Connects to `address`. `before` may hold a reply back, or say what it is; `lists` counts the lists that have come. */
export function scriptedWorker(
  context: ZmqContext,
  address: string,
  before: (lists: number) => Reply | Promise<Reply>,
): ScriptedWorker {
  const socket = context.socket('REP')
  socket.connect(address)
  const seen: string[] = []
  let replying = false
  let closed = false
  const look = async () => {
    const frames = replying ? null : socket.recv()
    if (frames === null) return
    replying = true
    seen.push(readEngineMessage(frames.at(-1)!).type)
    const reply = await before(seen.filter((one) => one === 'list').length)
    if (closed) return
    // also to the exception: a REP takes nothing more before it has replied
    socket.send([reply ?? new Uint8Array(0)])
    replying = false
  }
  const timer = setInterval(look, LOOK_MS)
  return {
    seen,
    close() {
      closed = true
      clearInterval(timer)
      socket.close()
    },
  }
}
