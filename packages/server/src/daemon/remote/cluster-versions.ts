import { createHash } from 'node:crypto'
import { CkptError, type GatherAnswer, type Metas, type SourceSpace } from '@ckpt/core'
import type { HeldLayout } from '@ckpt/core/cluster/layout-columns'
import { mergeLayouts, type RepeatedTensor } from '@ckpt/core/cluster/merge-layouts'
import { isNothingHeld, leaseAny } from '../registry/lease.ts'
import { type MetaOwner, makeMetas } from '../registry/metas.ts'
import type { Registry } from '../registry/registry.ts'
import { emptyVersion } from '../registry/versions.ts'
import type { HeldVersion, VersionLease } from '../types.ts'
import { HeldParts } from './held-parts.ts'
import { type LayoutColumns, layoutColumns, readColumns } from './layouts.ts'
import type { LeaseAnswer } from './messages.ts'
import type { RemoteNode } from './remote-node.ts'

/** What one daemon has of a checkpoint. */
interface Part {
  /** null: this daemon. */
  readonly node: RemoteNode | null
  readonly layout: HeldLayout
  /** See `LayoutColumns`. */
  readonly key: string
  readonly version: string | null
  readonly layoutDigest: string
  /** Global ranks. */
  readonly ownerRanks: readonly (readonly number[])[]
}

interface Merged {
  readonly keys: string
  readonly table: HeldVersion['table']
  readonly sources: readonly SourceSpace[]
  readonly firstOwners: readonly number[]
  readonly bytes: number
  readonly layoutDigest: string
}

interface TakenVersion {
  readonly lease: VersionLease
  readonly id: number
  /** Who was asked. */
  readonly nodes: readonly RemoteNode[]
  /** Who holds some of it, and the first of its owners among all. */
  readonly parts: readonly (readonly [RemoteNode, number])[]
}

/** For whom a version is held. */
interface Taker {
  readonly updateId: string
  /** Of its update. */
  readonly ranks: readonly number[]
  /** From now on the metas of all daemons tell where the version lies. */
  readonly gathers: boolean
}

type LeasedPart = Part & { readonly answer: LeaseAnswer }

/** Checkpoints of which every daemon has a part. */
export class ClusterVersions {
  readonly #registry: Pick<Registry, 'lease' | 'gather'>
  readonly #nodes: (ranks: readonly number[]) => readonly RemoteNode[]
  readonly #ranks: () => number
  readonly #listens: () => string | null
  /** By checkpoint: as it was put together last. */
  readonly #merged = new Map<string, Merged>()
  readonly #held = new HeldParts()
  /** By table; only followers that plan need the columns. */
  readonly #leased = new WeakMap<object, HeldLayout>()
  readonly #columns = new WeakMap<object, LayoutColumns>()
  #gathered: { readonly version: HeldVersion; readonly owners: readonly MetaOwner[] } | null = null
  #leases = 0

  /**
   * @param nodes the other daemons that an update of these ranks is about: guests only with a rank in it
   * @param ranks how many all daemons have, guests aside
   * @param listens where others can join; null: that cannot be told
   */
  constructor(
    registry: Pick<Registry, 'lease' | 'gather'>,
    nodes: (ranks: readonly number[]) => readonly RemoteNode[],
    ranks: () => number,
    listens: () => string | null = () => null,
  ) {
    this.#listens = listens
    this.#registry = registry
    this.#nodes = nodes
    this.#ranks = ranks
  }

  /** Of a table that was leased, or whose layout the daemons hold. */
  readonly layoutOf = (table: object): LayoutColumns => {
    const layout = this.#leased.get(table)
    if (layout === undefined) throw new Error('nobody has told of this table')
    return this.#columnsOf(layout)
  }

  /**
   * The newest version of what every daemon holds of the name, held by each of them until it is released.
   *
   * @throws CkptError as `Registry.lease`, `tensor_conflict`, `checkpoint_invalid`, `node_lost`
   */
  async lease(
    name: string,
    { id: updateId, ranks }: { readonly id: string; readonly ranks: readonly number[] },
  ): Promise<VersionLease> {
    const { lease, id, nodes, parts } = await this.#take(name, { updateId, ranks, gathers: true })
    for (const node of nodes) node.part = { lease: id, firstOwner: 0 }
    for (const [node, firstOwner] of parts) node.part = { lease: id, firstOwner }
    return lease
  }

  /**
   * As {@link lease}, for somebody who takes part in no update: `metas` tells nowhere of it.
   *
   * @throws CkptError as {@link lease}
   */
  async hold(name: string, id: string): Promise<VersionLease> {
    return (await this.#take(name, { updateId: id, ranks: [], gathers: false })).lease
  }

  /** Changes nothing of an update that runs. */
  async #take(name: string, taker: Taker): Promise<TakenVersion> {
    const nodes = this.#nodes(taker.ranks)
    const id = ++this.#leases
    let own: VersionLease | null = null
    const end = (succeeded: boolean) => {
      own?.release(succeeded)
      for (const node of nodes) node.post({ op: 'end_lease', lease: id, succeeded })
    }
    try {
      const asked = Promise.all(nodes.map((node) => this.#ask(node, name, id, taker)))
      asked.catch(() => {}) // thrown below
      const held = leaseAny(this.#registry, name, taker.gathers)
      own = held instanceof CkptError ? null : held
      const theirs = (await asked).filter((part) => part !== null)
      if (held instanceof CkptError && theirs.length === 0) {
        this.#merged.delete(name)
        throw held
      }
      const present = new Set(theirs.flatMap(({ node }) => node?.node ?? []))
      const parts = [...(own === null ? [] : [this.#ownPart(own.version)]), ...theirs]
      const merged = this.#merge(name, parts)
      const version = versionOf(name, own?.version ?? null, parts, merged)
      this.#held.requireWhole(name, version.table, present)
      const owners = parts.flatMap(({ ownerRanks, version: told, layoutDigest: digest }) =>
        ownerRanks.map(([rank = 0]) => ({ rank, version: told, layoutDigest: digest })),
      )
      if (taker.gathers) this.#gathered = { version, owners }
      const places = parts.flatMap(({ node }, i): [RemoteNode, number][] =>
        node === null ? [] : [[node, merged.firstOwners[i] as number]],
      )
      return { lease: leaseOf(version, own, theirs, id, end), id, nodes, parts: places }
    } catch (error) {
      end(false)
      throw error
    }
  }

  /**
   * What an update of `name` would send; no tensors when nothing is held.
   *
   * @throws CkptError as {@link lease}, except `checkpoint_not_found` and `checkpoint_empty`
   */
  async gather(name: string): Promise<GatherAnswer> {
    const begin = performance.now()
    const version = await this.#look(name)
    return {
      digest: version.layoutDigest,
      ranks: this.#ranks(),
      tensors: version.table.names.length,
      bytes: version.bytes,
      seconds: (performance.now() - begin) / 1000,
    }
  }

  async #look(name: string): Promise<HeldVersion> {
    try {
      const { lease } = await this.#take(name, { updateId: 'gather', ranks: [], gathers: true })
      lease.release(false)
      return lease.version
    } catch (error) {
      if (!isNothingHeld(CkptError.wrap(error))) throw error
      const version = emptyVersion(name)
      this.#gathered = { version, owners: [] }
      return version
    }
  }

  /** Of what was gathered or updated last; null: nothing was. */
  get metas(): Metas | null {
    if (this.#gathered === null) return null
    return makeMetas(this.#gathered.version, this.#gathered.owners, this.#listens())
  }

  /** What was put together, as if it never had been. */
  forgetMerged(): void {
    this.#merged.clear()
  }

  /** The name is dropped: nobody misses what lost daemons had of it. */
  forget(name: string): void {
    this.#held.forget(name)
    this.#merged.delete(name)
    for (const node of this.#nodes([])) node.told.delete(name)
  }

  /** Others were loaded. */
  forgetMetas(): void {
    this.#gathered = null
  }

  async #ask(
    node: RemoteNode,
    name: string,
    lease: number,
    { updateId, gathers }: Taker,
  ): Promise<LeasedPart | null> {
    const before = node.told.get(name)
    const held = before?.key ?? null
    const answer = await node.ask({ op: 'lease', name, lease, updateId, held, gathers })
    if (answer === null) {
      node.told.delete(name)
      this.#held.tell(name, node, null)
      return null
    }
    const { layout: key, columns } = answer
    const layout = columns === null ? before?.layout : readColumns(columns)
    if (layout === undefined) throw new Error('a daemon did not tell its layout')
    node.told.set(name, { key, layout })
    this.#held.tell(name, node, layout)
    const first = node.ranks[0]?.rank.rank ?? 0
    const ownerRanks = answer.ownerRanks.map((ranks) => ranks.map((rank) => first + rank))
    const { version, layoutDigest: digest } = answer
    return { node, layout, key, version, layoutDigest: digest, ownerRanks, answer }
  }

  #merge(name: string, parts: readonly Part[]): Merged {
    requireOneVersion(name, parts)
    const keys = JSON.stringify(parts.map(({ node, key }) => [node?.node ?? 0, key]))
    const before = this.#merged.get(name)
    if (before?.keys === keys) return before
    const { table, sources, firstOwners, repeated } = mergeLayouts(
      parts.map(({ node, layout }) => ({ place: `node ${node?.node ?? 0}`, layout })),
    )
    if (repeated !== null && parts[0]?.version === null) throw ambiguous(name, repeated)
    const merged = {
      keys,
      table,
      sources,
      firstOwners,
      bytes: table.bytes.reduce((total, bytes) => total + bytes, 0),
      layoutDigest: digestOf(parts),
    }
    this.#merged.set(name, merged)
    this.#leased.set(table, { table, sources })
    return merged
  }

  #ownPart({ table, sources, version, ownerRanks, layoutDigest: digest }: HeldVersion): Part {
    const layout = { table, sources }
    const nodes = sources.map((source) => source.nodes?.join() ?? '')
    const key = JSON.stringify([digest, nodes])
    return { node: null, layout, key, version, layoutDigest: digest, ownerRanks }
  }

  #columnsOf({ table, sources }: HeldLayout): LayoutColumns {
    const columns = this.#columns.get(table) ?? layoutColumns(table, sources)
    this.#columns.set(table, columns)
    return columns
  }
}

/** The whole follows from its parts and their order. */
function digestOf(parts: readonly Part[]): string {
  const [first, ...others] = parts.map(({ layoutDigest: digest }) => digest)
  if (others.length === 0) return first ?? ''
  return createHash('sha256')
    .update([first, ...others].join())
    .digest('hex')
    .slice(0, 32)
}

/** Whose bytes are newer nobody can tell. */
function ambiguous(name: string, { tensor, places }: RepeatedTensor): CkptError {
  const message = `checkpoint '${name}' is held without a version by ${places.join(' and ')}, which both have ${tensor}: drop it (ckpt rm) where it is old, or register it with the same version everywhere`
  return new CkptError('checkpoint_invalid', message, { tensor })
}

/**
 * Old tensors of one daemon would mix with new ones of another.
 *
 * @throws CkptError `checkpoint_invalid` with two places whose versions differ
 */
function requireOneVersion(name: string, parts: readonly Part[]): void {
  const [first] = parts
  const other = parts.find(({ version }) => version !== first?.version)
  if (first === undefined || other === undefined) return
  const words = ({ node, version }: Part) =>
    `${version === null ? 'without a version' : `as version ${version}`} by node ${node?.node ?? 0}`
  const message = `checkpoint '${name}' is held ${words(first)} and ${words(other)}: register the same version everywhere, or drop it (ckpt rm) where it is not wanted`
  throw new CkptError('checkpoint_invalid', message)
}

function versionOf(
  name: string,
  own: HeldVersion | null,
  parts: readonly Part[],
  { table, sources, bytes, layoutDigest: digest }: Merged,
): HeldVersion {
  const others = sources.slice(own?.sources.length ?? 0)
  return {
    name,
    version: parts[0]?.version ?? null,
    serial: own?.serial ?? 0,
    table,
    sources,
    buffers: [...(own?.buffers ?? []), ...others.map(() => new Uint32Array(0))],
    readings: [...(own?.readings ?? []), ...others.map(() => null)],
    ownerRanks: parts.flatMap(({ ownerRanks }) => ownerRanks),
    ownerNodes: parts.flatMap(({ node, ownerRanks }) => ownerRanks.map(() => node?.node ?? 0)),
    bytes,
    layoutDigest: digest,
    files: own?.files ?? [],
  }
}

function leaseOf(
  version: HeldVersion,
  own: VersionLease | null,
  theirs: readonly LeasedPart[],
  lease: number,
  end: (succeeded: boolean) => void,
): VersionLease {
  const nodesOf = (which: (answer: LeaseAnswer) => boolean) =>
    theirs.flatMap(({ node, answer }) => (node !== null && which(answer) ? [node] : []))
  const reading = nodesOf((answer) => answer.reading)
  const inPlace = nodesOf((answer) => answer.inPlace)
  const served = new Set<RemoteNode>()
  const ended = reading.map((node) => node.ask({ op: 'complete', lease }))
  const complete = Promise.all([own?.complete ?? 0, ...ended]).then(([seconds, ...answers]) =>
    Math.max(seconds, ...answers.map((answer) => answer.seconds)),
  )
  complete.catch(() => {}) // whoever waits for it is told
  const check = async () => {
    // one whose session is over may have put other bytes where these were
    const nodes = new Set([...inPlace, ...served])
    const asked = [...nodes].map((node) => node.ask({ op: 'check', lease }))
    await Promise.all([own?.check?.(), ...asked])
  }
  const serve = async (nodes: ReadonlySet<number>) => {
    const asked = theirs.map(({ node, ownerRanks }) => {
      if (node === null || !nodes.has(node.node)) return ownerRanks.map(() => null)
      served.add(node)
      return node.ask({ op: 'serve', lease })
    })
    return (await Promise.all([own?.serve(nodes) ?? [], ...asked])).flat()
  }
  let released = false
  return {
    version,
    complete,
    serve,
    check: theirs.length > 0 || own?.check ? check : null,
    release(succeeded) {
      if (released) return
      released = true
      end(succeeded)
    },
  }
}
