import { ABORT_TEXT, pickleRuntimeError } from '@ckpt/core'
import { type ZmqContext, zmqPoll } from '@ckpt/cuda'
import { EngineSocket } from './engine-socket.ts'
import { clockMs } from '../clock.ts'

/** libzmq reconnects after 100 ms: who has not come by then is gone. */
const CONNECT_MS = 3000
/** A worker that is inside `run` or that took the first message for the handle wants another one. */
const REPEAT_MS = 500
const POLL_MS = 50

/** Where workers of a dead daemon may still wait. */
export interface LeftAddresses {
  readonly cutOff: readonly string[]
  /** Of updates that had ended: nobody waits for a worker to come. */
  readonly ended: readonly string[]
  readonly limitMs: number
}

/** A worker of a dead daemon that may still wait. */
export interface Left {
  readonly address: string
  readonly socket: EngineSocket
  /** Until when it may take to come. */
  readonly comesMs: number
  connected: boolean
  gone: boolean
  nextMs: number
}

/**
 * Ends the conversations of a dead daemon: binds its addresses, sends the abort message to every worker that reconnects,
 * until it is gone. Blocks for `limitMs` at most. Returns those that have not left, their sockets open: the caller's.
 */
export function releaseLeft(
  context: ZmqContext,
  { cutOff, ended, limitMs }: LeftAddresses,
): Left[] {
  const startMs = clockMs()
  const body = pickleRuntimeError(ABORT_TEXT)
  const left: Left[] = []
  try {
    for (const address of [...cutOff, ...ended]) {
      const socket = new EngineSocket(context, address)
      const comesMs = ended.includes(address) ? startMs : startMs + CONNECT_MS
      left.push({ address, socket, comesMs, connected: false, gone: false, nextMs: startMs })
    }
    for (;;) {
      const nowMs = clockMs()
      for (const one of left) tell(one, body, nowMs)
      const waiting = left.filter((one) => !one.gone && (one.connected || nowMs < one.comesMs))
      if (waiting.length === 0 || nowMs >= startMs + limitMs) break
      zmqPoll(
        waiting.flatMap((one) => one.socket.pollItems),
        POLL_MS,
      )
    }
    for (const one of left) if (one.gone) one.socket.close()
    return left.filter((one) => !one.gone)
  } catch (error) {
    for (const one of left) one.socket.close()
    throw error
  }
}

function tell(one: Left, body: Uint8Array, nowMs: number): void {
  const { socket } = one
  for (let link = socket.nextLink(); link !== null; link = socket.nextLink()) {
    one.connected ||= link === 'connected'
    one.gone = link === 'disconnected'
    one.nextMs = nowMs
  }
  // a reply: the worker took the message for the one it expected, so it wants another one
  while (socket.receive() !== null) one.nextMs = nowMs
  socket.flush()
  if (!one.connected || one.gone || nowMs < one.nextMs) return
  socket.send(body)
  one.nextMs = nowMs + REPEAT_MS
}
