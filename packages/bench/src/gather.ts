import {
  decodeLayout,
  encodeLayout,
  type HeldLayout,
  type MergedLayout,
  type Metas,
  mergeLayouts,
  type SourceSpace,
  type TensorTable,
} from '@ckpt/core'
import { buildTable, layoutDigest } from '@ckpt/core/checkpoint/build-table'
import { createRegistry } from 'ckpt/daemon/registry/held'
import { modelTensors, type TensorShape } from 'ckpt/cli/model-shapes'
import { layOutStriped } from 'ckpt/cli/plan-prediction'
import type { Bench } from './bench.ts'
import { atMost } from './claims.ts'
import { writeVersions } from './checkpoint.ts'
import { daemonOptions } from './daemon-options.ts'
import { socketRows } from './gather-sockets.ts'
import type { Checked } from './measure.ts'
import { measureRow, type Row } from './row.ts'

const TENSORS = [399, 18_432] as const
const ELEMENTS = 64
const TORCH_DTYPE = 'torch.bfloat16'
const DAEMONS = { model: 'kimi-k2', count: 256 } as const
const LAYOUTS_SECONDS_MOST = 0.15

/** What a daemon tells of a registered checkpoint: digest, then the metas of every tensor. No weights move. */
export const gather: Bench = {
  name: 'gather',
  async *rows({ devices, dir }) {
    const options = daemonOptions(devices, null, dir)
    await using stack = new AsyncDisposableStack()
    const registry = await createRegistry(options)
    stack.defer(() => registry.close())
    for (const count of TENSORS) {
      const shapes = smallTensors(count)
      const [{ files }] = await writeVersions(dir, shapes, count * ELEMENTS * 2)
      const name = `tensors-${count}`
      await registry.register(name, { files: [...files] }, null)
      let metas: Metas = {}
      yield await measureRow(
        { bench: 'gather', case: `${count} tensors, with metas`, tensors: count },
        {
          prepare: () => {
            metas = {}
            registry.loadMetas(metas)
          },
          run: () => {
            registry.gather(name)
            metas = registry.metas()
          },
          check: () => compareMetas(metas, shapes),
        },
      )
    }
    yield await layoutsRow()
    yield* socketRows(dir)
  },
}

function smallTensors(count: number): TensorShape[] {
  return Array.from({ length: count }, (_, i) => ({
    name: `layers.${i}.weight`,
    dtype: 'BF16',
    shape: [ELEMENTS],
  }))
}

/** What a leader makes of what many daemons would tell of one checkpoint, striped over them. Without sockets. */
async function layoutsRow(): Promise<Row> {
  const { model, count } = DAEMONS
  const name = `${model} of ${count} daemons, decoded and merged`
  const { table, sources } = layOutStriped(modelTensors(model), count)
  const told = sources.map((_, owner) => encodeLayout(partOf(table, sources, owner)))
  let merged: MergedLayout | null = null
  const row = await measureRow(
    { bench: 'gather', case: name, tensors: table.names.length },
    {
      prepare: () => {
        merged = null
      },
      run: () => {
        merged = mergeLayouts(
          told.map((body, node) => ({ place: `node ${node}`, layout: decodeLayout(body) })),
        )
      },
      check: () => {
        const compared = table.names.length
        const same = layoutDigest(table, sources)
        const right = merged !== null && layoutDigest(merged.table, merged.sources) === same
        return { compared, wrong: right ? 0 : compared }
      },
    },
  )
  return { ...row, claims: [atMost(`gather ${name}`, row.p50_s, LAYOUTS_SECONDS_MOST, 's')] }
}

/** What one owner holds, as a daemon that has no other. */
function partOf(table: TensorTable, sources: readonly SourceSpace[], owner: number): HeldLayout {
  const rows = table.names.flatMap((name, i) => {
    if (table.owners[i] !== owner) return []
    const [dtype, bytes, offset] = [table.dtypes[i]!, table.bytes[i]!, table.offsets[i]!]
    return [{ name, dtype, shape: table.shapes[i]!, bytes, owner: 0, offset }]
  })
  return { table: buildTable(rows), sources: [sources[owner] as SourceSpace] }
}

/** Counts the tensors that the metas do not name once with their dtype and shape. */
export function compareMetas(metas: Metas, shapes: readonly TensorShape[]): Checked {
  const listed = new Map<string, string[]>()
  for (const { memory_buffer_metas_list: runs } of Object.values(metas)) {
    for (const { name, dtype, shape } of runs.flatMap((run) => run.metas)) {
      listed.set(name, [...(listed.get(name) ?? []), `${dtype} ${shape}`])
    }
  }
  const right = shapes.filter(({ name, shape }) => {
    const seen = listed.get(name)
    return seen?.length === 1 && seen[0] === `${TORCH_DTYPE} ${shape}`
  })
  const compared = Math.max(shapes.length, listed.size)
  return { compared, wrong: compared - right.length }
}
