import {
  CkptError,
  cutAtRanges,
  type DirectCopy,
  type DirectPlan,
  decodePlacementMap,
  type FetchedCopies,
  type FetchPlan,
  type FragmentedPlan,
  fragmentPlan,
  type LookAnswer,
  neededRanges,
  type NotDirect,
  type PlacementMap,
  planShares,
  type Share,
  type SharedPlan,
  sharePlan,
  tensorCopies,
  planDirect,
  type SourceRanges,
  summariseMap,
} from '@ckpt/core'
import type { Handle, Library } from '@ckpt/cuda'
import { ALLOCATIONS_MAX, type Board, FRAGMENTS_MAX } from './board.ts'
import { type EngineAllocation, EngineMemory, SlowSizes } from './engine-memory.ts'
import type { EngineMapSummary, SourceLayout } from './messages.ts'

/** Engines whose map a rank keeps: one of a large model has some ten megabytes. */
const ENGINES_MAX = 4
/** Layouts of checkpoints that a rank keeps, and plans of each engine. */
const LAYOUTS_MAX = 4

/** A placement map with what tells it from others. */
interface EngineMap {
  readonly digest: string
  readonly map: PlacementMap
}

interface KnownEngine extends EngineMap {
  memory: KnownMemory | null
  readonly plans: Map<string, DirectPlan | NotDirect>
}

/** Where an engine's memory was the last time, and how it is opened. */
export interface KnownMemory {
  readonly generation: string
  readonly allocations: readonly EngineAllocation[]
}

/** How one rank's plan is carried out together with other ranks of its daemon. */
export interface Sharing {
  readonly share: Share
  readonly shared: SharedPlan
  /** The copy of each fragment. */
  readonly fragments: readonly DirectCopy[]
}

interface KnownSharing {
  readonly plan: DirectPlan
  readonly me: number
  /** Of all boards. */
  readonly stamps: readonly number[]
  readonly sharing: Sharing | null
}

interface PinnedMemory {
  readonly buffer: Handle
  readonly bytes: number
}

type Pinned = 'staging' | 'slots'

/** What was made of a plan for what its daemon fetches. */
interface Cut {
  readonly plan: DirectPlan
  readonly fetch: FetchPlan
  readonly copies: FetchedCopies
}

/** What a rank keeps for direct updates: the map that each engine has sent last, and what was planned from it. */
export class DirectPlans {
  readonly #slowSizes = new SlowSizes()
  readonly #engines = new Map<string, KnownEngine>()
  readonly #layouts = new Map<string, SourceLayout>()
  readonly #held: Record<Pinned, PinnedMemory | null> = { staging: null, slots: null }
  readonly #needs = new WeakMap<DirectPlan, SourceRanges>()
  /** Of the last update. */
  #cut: Cut | null = null
  readonly #fragmented = new WeakMap<DirectPlan, FragmentedPlan>()
  #sharing: KnownSharing | null = null
  /** What this rank's board says. */
  #written: DirectPlan | null = null
  readonly #pinned: (buffers: readonly Handle[]) => void

  /** @param pinned is told what pinned memory there is: whoever outlives the rank can free it */
  constructor(pinned: (buffers: readonly Handle[]) => void = () => {}) {
    this.#pinned = pinned
  }

  /** Null: this engine has sent none. */
  map(engine: string): EngineMap | null {
    return this.#engines.get(engine) ?? null
  }

  /** Of its last answer that could be planned; null: there was none. */
  memory(engine: string): KnownMemory | null {
    return this.#engines.get(engine)?.memory ?? null
  }

  /**
   * The same memory for one update, with nothing open.
   *
   * @param sharers whether it can take from other engines' memory
   */
  engineMemory(
    library: Library,
    device: number,
    { allocations }: KnownMemory,
    sharers: boolean,
  ): EngineMemory {
    return new EngineMemory(library, device, allocations, this.#slowSizes, sharers)
  }

  /** It is not opened any more before its worker has said where it is. */
  forgetMemory(engine: string): void {
    const known = this.#engines.get(engine)
    if (known !== undefined) known.memory = null
  }

  /**
   * Of the same.
   *
   * @param tensor whose copies are told too
   */
  summary(engine: string, tensor: string | null): EngineMapSummary | null {
    const known = this.map(engine)
    if (known === null) return null
    const { digest, map } = known
    const placed = tensor === null ? null : tensorCopies(map, tensor)
    return { digest, ...summariseMap(map), tensor: placed }
  }

  holds(layoutKey: string): boolean {
    return this.#layouts.has(layoutKey)
  }

  keep(layoutKey: string, layout: SourceLayout): void {
    putLast(this.#layouts, layoutKey, layout, LAYOUTS_MAX)
  }

  /** Null: it can be planned. Else why the map is of no use: it is none, perhaps of a later version, or another one than it says. */
  take(engine: string, answer: LookAnswer): NotDirect | null {
    const { encodedMap, map: digest } = answer
    try {
      if (encodedMap.length > 0) {
        if (new Bun.CryptoHasher('sha256').update(encodedMap).digest('hex') !== digest) {
          return { reason: "the engine's placement map is not the one that its digest names" }
        }
        const map = decodePlacementMap(encodedMap)
        const fresh = { digest, map, memory: null, plans: new Map() }
        putLast(this.#engines, engine, fresh, ENGINES_MAX)
      }
    } catch (error) {
      return { reason: CkptError.wrap(error).message }
    }
    const known = this.#engines.get(engine)
    if (known?.digest !== digest) return { reason: 'the engine did not send its placement map' }
    const { allocationBytes } = known.map
    const { length } = allocationBytes
    if (length === answer.handles.length) {
      const allocations = answer.handles.map((handle, index) => {
        return { handle, bytes: allocationBytes[index] as number }
      })
      known.memory = { generation: answer.generation, allocations }
      return null
    }
    const reason = `the engine's placement map has ${length} allocations, but ${answer.handles.length} handles came`
    return { reason }
  }

  /**
   * For the map that the engine has sent last.
   *
   * @param away per owner: whether another daemon has its bytes
   */
  plan(engine: string, layoutKey: string, away: readonly boolean[]): DirectPlan | NotDirect {
    const known = this.#engines.get(engine)
    const layout = this.#layouts.get(layoutKey)
    if (known === undefined || layout === undefined) throw new Error('no map, or no layout')
    const key = [layoutKey, ...away.map(Number)].join()
    const isFetched = (owner: number) => away[owner] ?? false
    const plan =
      known.plans.get(key) ?? planDirect(known.map, layout.table, layout.sources, { isFetched })
    putLast(known.plans, key, plan, LAYOUTS_MAX)
    putLast(this.#layouts, layoutKey, layout, LAYOUTS_MAX)
    return plan
  }

  /** What of other daemons' memory it needs. */
  needs(plan: DirectPlan): SourceRanges {
    const known = this.#needs.get(plan) ?? neededRanges(plan.fetched, () => true)
    this.#needs.set(plan, known)
    return known
  }

  /** Its copies of what is fetched, which for most updates is the same as before. */
  cut(plan: DirectPlan, fetch: FetchPlan): FetchedCopies {
    const before = this.#cut
    if (before?.plan === plan && Bun.deepEquals(before.fetch, fetch)) return before.copies
    const copies = cutAtRanges(plan.fetched, fetch)
    this.#cut = { plan, fetch, copies }
    return copies
  }

  /** Says on its board what this rank copies, and that nothing of it is there. Returns bytes of it that others could bring. */
  write(board: Board, plan: DirectPlan, device: number): number {
    board.clear()
    const { fragments } = this.#fragments(plan)
    const bytes = fragments.reduce((sum, { width }) => sum + width, 0)
    if (this.#written !== plan) board.write(fragments, plan.bytes - bytes, device)
    this.#written = plan
    return bytes
  }

  /**
   * What a rank copies itself, and takes from others, whose boards are written. Null: they have nothing in common with it.
   *
   * @param me its position among the sharers
   */
  sharing(plan: DirectPlan, boards: readonly Board[], me: number): Sharing | null {
    const stamps = boards.map(({ stamp }) => stamp)
    const known = this.#sharing
    const same = known?.plan === plan && known.me === me
    if (same && Bun.deepEquals(known.stamps, stamps)) return known.sharing
    const share = planShares(boards.map(({ sharer }) => sharer))[me] as Share
    const fragmented = this.#fragments(plan)
    const none = share.taken.length === 0 && share.given.length === 0
    const { fragments } = fragmented
    const sharing = none ? null : { share, shared: sharePlan(plan, fragmented, share), fragments }
    this.#sharing = { plan, me, stamps, sharing }
    return sharing
  }

  #fragments(plan: DirectPlan): FragmentedPlan {
    const known = this.#fragmented.get(plan)
    if (known !== undefined) return known
    const all = [...plan.copies, ...plan.fetched]
    const fits = all.every(({ allocation }) => allocation < ALLOCATIONS_MAX)
    const made = fragmentPlan(plan, fits ? FRAGMENTS_MAX : 0)
    this.#fragmented.set(plan, made)
    return made
  }

  layout(layoutKey: string): SourceLayout {
    const layout = this.#layouts.get(layoutKey)
    if (layout === undefined) throw new Error('the layout is not held')
    return layout
  }

  /** Pinned memory in which small tensors are gathered; the same for every update that it is large enough for. */
  staging(library: Library, bytes: number, node: number): Handle {
    return this.#atLeast('staging', library, bytes, node)
  }

  /** As {@link DirectPlans.staging}, of what is fetched from other daemons. */
  slots(library: Library, bytes: number, node: number): Handle {
    return this.#atLeast('slots', library, bytes, node)
  }

  /** What is there, where it has so many bytes; else it is freed, and there is more. */
  #atLeast(which: Pinned, library: Library, bytes: number, node: number): Handle {
    const held = this.#held[which]
    if (held !== null && held.bytes >= bytes) return held.buffer
    if (held !== null) {
      this.#hold(which, null)
      library.bufferFree(held.buffer)
    }
    const buffer =
      node < 0 ? library.bufferAlloc(bytes, 0) : library.bufferAllocNear(bytes, node).buffer
    this.#hold(which, { buffer, bytes })
    return buffer
  }

  #hold(which: Pinned, memory: PinnedMemory | null): void {
    this.#held[which] = memory
    this.#pinned(Object.values(this.#held).flatMap((one) => one?.buffer ?? []))
  }

  /** A copy that could not be stopped may still read it: it goes with the memory that it writes. */
  leaveStaging(memory: EngineMemory | null): void {
    if (memory === null) return
    if (this.#held.staging !== null) memory.own(this.#held.staging.buffer)
    this.#hold('staging', null)
  }

  free(library: Library): void {
    for (const which of ['staging', 'slots'] as const) {
      const held = this.#held[which]
      if (held !== null) library.bufferFree(held.buffer)
      this.#hold(which, null)
    }
  }
}

/** A Map keeps the order of insertion: the first is the one used longest ago. */
function putLast<T>(kept: Map<string, T>, key: string, value: T, countMax: number): void {
  kept.delete(key)
  kept.set(key, value)
  for (const oldest of kept.keys()) {
    if (kept.size <= countMax) break
    kept.delete(oldest)
  }
}
