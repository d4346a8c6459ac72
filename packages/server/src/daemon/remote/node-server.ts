import { CkptError, type Failure } from '@ckpt/core'
import { clockMs } from '../clock.ts'
import { log } from '../log.ts'
import type { RankHandle, Ranks } from '../rank/handle.ts'
import type { Registry } from '../registry/registry.ts'
import type { Journal } from '../updates/journal.ts'
import { LayoutShelf } from './layouts.ts'
import type { NodeEngines } from './node-engines.ts'
import type { NodeMarks } from './node-marks.ts'
import { NodeLeases } from './node-leases.ts'
import { NodeRuns } from './node-runs.ts'
import type {
  LeaderPost,
  NodeAnswers,
  NodeDescription,
  NodePost,
  NodeRequest,
  RemoteRankRequest,
} from './messages.ts'

/** Of its own view every daemon is the first. */
const OWN: ReadonlySet<number> = new Set([0])

/** What a daemon serves its leader with. */
export interface NodeParts {
  readonly registry: Pick<Registry, 'lease' | 'gather'>
  readonly pool: Ranks
  readonly journal: Journal
  readonly socketDir: string
  readonly engines: NodeEngines
  readonly marks: NodeMarks
  /** Is told while the leader uses the ranks, that nothing else may. */
  readonly busy: (busy: boolean) => void
}

/** A daemon's part in the updates that its leader drives. */
export class NodeServer {
  readonly #parts: NodeParts
  readonly #layouts = new LayoutShelf()
  readonly #leases: NodeLeases
  readonly #runs: NodeRuns
  /** Tells Workers that were replaced from those of before. */
  readonly #workers = new WeakMap<RankHandle, number>()
  #workerCount = 0
  #firstRank: number | null = null
  #losing: Promise<void> = Promise.resolve()

  /** @param post tells the leader, while there is one */
  constructor(parts: NodeParts, post: (post: LeaderPost) => void) {
    this.#parts = parts
    this.#leases = new NodeLeases(parts.registry, parts.busy)
    this.#runs = new NodeRuns(parts, this.#leases, post)
  }

  /** @throws CkptError why not */
  async answer(request: NodeRequest): Promise<NodeAnswers[keyof NodeAnswers] | unknown> {
    switch (request.op) {
      case 'lease':
        return this.#leases.take(request)
      case 'complete':
        return { seconds: (await this.#leases.of(request.lease).lease?.complete) ?? 0 }
      case 'serve':
        return (await this.#leases.of(request.lease).lease?.serve(OWN)) ?? []
      case 'check':
        await this.#leases.of(request.lease).lease?.check?.()
        return null
      case 'layout': {
        const { layout, columns } = request
        if (columns !== null) this.#layouts.keep({ key: layout, columns })
        return { held: this.#layouts.get(layout) !== undefined }
      }
      case 'use': {
        const links = await this.#parts.pool.use(request.ranks)
        return { workers: links.map((link) => this.#numberOf(link)) }
      }
      case 'quiet':
        await this.#parts.pool.quiet()
        return null
      case 'said':
        this.#runs.tellProgress()
        return null
      case 'engine':
        return this.#parts.engines.call(request.call, request.request)
      case 'engine_listener':
        return { listener: await this.#parts.engines.listener(request.address) }
      case 'rank':
        return this.#ofRank(this.#link(request.rank), request.request)
      default:
        throw new CkptError('not_supported', `this daemon does not know '${op(request)}'`)
    }
  }

  #numberOf(link: RankHandle): number {
    const number = this.#workers.get(link) ?? this.#workerCount++
    this.#workers.set(link, number)
    return number
  }

  #link(rank: number): RankHandle {
    const link = this.#parts.pool.links.find((one) => one.rank.rank === rank)
    if (link === undefined) throw new CkptError('bad_request', `there is no rank ${rank}`)
    return link
  }

  async #ofRank(link: RankHandle, request: RemoteRankRequest): Promise<unknown> {
    switch (request.type) {
      case 'plan': {
        const { type, key, input } = request
        if (input === null) return link.request({ type, key, input })
        const { layout, ...rest } = input
        return link.request({ type, key, input: { ...rest, ...this.#layout(layout) } })
      }
      case 'layout': {
        const { type, key, layout } = request
        return link.request({ type, key, input: layout === null ? null : this.#layout(layout) })
      }
      case 'open':
        return this.#runs.open(link, request)
      case 'open_direct':
        return this.#runs.openDirect(link, request)
      case 'memory':
      case 'communicator_drop':
      case 'communicator_id':
      case 'engine_map':
        return link.request(request)
      default:
        throw new CkptError('not_supported', `a rank is not asked for '${op(request)}'`)
    }
  }

  #layout(key: string) {
    const layout = this.#layouts.get(key)
    if (layout === undefined) throw new Error('the layout is not held')
    return layout
  }

  /** The first of its ranks, as the leader numbers them; null: it did not say yet. */
  get firstRank(): number | null {
    return this.#firstRank
  }

  take(post: NodePost): void {
    if (post.op === 'numbered') {
      this.#firstRank = post.firstRank
      return
    }
    if (post.op === 'end_lease') return this.#leases.end(post.lease, post.succeeded)
    if (post.op === 'end_engine') return this.#parts.engines.end(post.call, post.failure)
    if (post.op === 'marks_taken') return this.#parts.marks.taken()
    this.#runs.tell(this.#link(post.rank), post.run, post.tell)
  }

  /** The leader is gone: what it drove ends. Resolves when nothing of it is left. */
  lose(failure: Failure): Promise<void> {
    this.#losing = this.#lose(failure)
    return this.#losing
  }

  async #lose(failure: Failure): Promise<void> {
    const began = clockMs()
    this.#firstRank = null
    const ended = this.#runs.endAll(failure)
    const release = this.#leases.leave()
    // a copy that could not be stopped still reads the checkpoint
    void ended.settled.then(release)
    // the engines' answers are the leader's no more: workers may still read rings until then
    this.#parts.engines.forget()
    const answered = this.#parts.engines.idle().then(() => ended.answered(failure))
    answered.catch(() => {})
    await ended.closed
    await this.#parts.marks.stop(ended.torn())
    const ms = Math.round(clockMs() - began)
    log.info('what the leader drove has ended after {ms} ms', { ms })
  }

  /** Whether an update of the leader uses something here. */
  get busy(): boolean {
    return this.#leases.any || this.#runs.any
  }

  /** For a leader that has come. Nothing of the one before it goes on then. */
  async describe(): Promise<NodeDescription> {
    await this.#losing
    return this.description
  }

  get description() {
    const { pool, socketDir, marks } = this.#parts
    const ranks = pool.links.map(({ rank }) => rank)
    return { ranks, socketDir, marks: [...marks.held] }
  }
}

function op(request: never): string {
  const { op: name, type } = request as { op?: unknown; type?: unknown }
  return String(name ?? type)
}
