import { receiveMessageOnPort, workerData } from 'node:worker_threads'
import { CkptError } from '@ckpt/core/api/errors'
import { FollowerMembership } from '@ckpt/core/cluster/membership-follower'
import { LeaderMembership } from '@ckpt/core/cluster/membership-leader'
import { type Handle, type Library, openLibrary, ZmqContext, zmqPoll } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { isProof, proofOf } from './keys.ts'
import { ClusterLoop } from './loop.ts'
import type { ClusterCommand, ClusterReport, ClusterWorkerStart } from './messages.ts'
import { type ClusterSocket, FollowerSocket, LeaderSocket } from './sockets.ts'

/** A wake-up that got lost costs no more than this. */
const POLL_MS_MAX = 200
/** The most messages of the main thread that are taken at once. */
const COMMANDS_MAX = 1000

/** The Worker of the cluster: it waits in one poll for its socket, for the main thread and for the time of a heartbeat. */
class ClusterWorker {
  readonly #port: ClusterWorkerStart['port']
  readonly #library: Library
  readonly #signal: Handle
  readonly #context = new ZmqContext()
  readonly #socket: ClusterSocket<string> | ClusterSocket<null>
  readonly #loop: ClusterLoop<string> | ClusterLoop<null>
  #closing = false

  constructor(start: ClusterWorkerStart) {
    this.#port = start.port
    this.#library = openLibrary(start.library)
    this.#signal = this.#library.signalCreate()
    const { leader, keys } = start
    if (start.nodeRank === 0) {
      const socket = new LeaderSocket(this.#context, leader, keys)
      this.#loop = new ClusterLoop(leaderOf(start), socket, () => [], this.#send)
      this.#socket = socket
    } else {
      const socket = new FollowerSocket(this.#context, leader, keys)
      const membership = followerOf(start)
      const connected = (nowMs: number) => membership.connected(nowMs)
      const lease = new Float64Array(start.lease)
      const publish = () => {
        // in this order: the main thread then never takes the session before for the one that lives
        lease[0] = membership.lease?.session ?? 0
        lease[1] = membership.lease?.untilMs ?? 0
      }
      this.#loop = new ClusterLoop<null>(membership, socket, connected, this.#send, publish)
      this.#socket = socket
    }
    this.#send({ type: 'ready', signal: this.#signal, address: this.#socket.address })
  }

  readonly #send = (report: ClusterReport, transfer: readonly ArrayBuffer[] = []): void => {
    this.#port.postMessage(report, [...transfer])
  }

  run(): void {
    const fd = this.#library.signalFd(this.#signal)
    while (!this.#closing) {
      const dueMs = this.#loop.step()
      zmqPoll([{ fd }, ...this.#socket.pollItems], Math.min(dueMs, POLL_MS_MAX))
      this.#library.signalTake(this.#signal)
      this.#takeCommands()
    }
    this.#context.close()
    this.#library.signalDestroy(this.#signal)
  }

  #takeCommands(): void {
    for (let taken = 0; taken < COMMANDS_MAX; taken++) {
      const received = receiveMessageOnPort(this.#port) as { message: ClusterCommand } | undefined
      if (received === undefined) return
      const { message: command } = received
      if (command.type === 'message') this.#loop.push(command.message)
      else {
        this.#closing = true
        this.#loop.close(command.reason)
        return
      }
    }
    // the others have not been told of by a signal of their own
    this.#library.signalRaise(this.#signal, 0)
  }
}

function leaderOf(start: ClusterWorkerStart): LeaderMembership<string> {
  const { nodes, incarnation, info, times, keys } = start
  return new LeaderMembership({
    nodes,
    incarnation,
    info,
    times,
    checkProof: (...told) => isProof(keys.proof, ...told),
  })
}

function followerOf(start: ClusterWorkerStart): FollowerMembership {
  const { nodeRank, nodes, incarnation, info, times, keys } = start
  return new FollowerMembership(clockMs(), {
    nodeRank,
    nodes,
    incarnation,
    info,
    times,
    prove: (...of) => proofOf(keys.proof, ...of),
  })
}

const start = workerData as ClusterWorkerStart
try {
  new ClusterWorker(start).run()
  start.port.close()
  process.exit(0)
} catch (error) {
  const report: ClusterReport = { type: 'dead', failure: CkptError.wrap(error).failure }
  start.port.postMessage(report)
}
