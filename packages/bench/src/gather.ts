import type { Metas } from '@ckpt/core'
import { createRegistry } from 'ckpt/daemon/registry/registry'
import type { TensorShape } from 'ckpt/cli/model-shapes'
import type { Bench } from './bench.ts'
import { writeVersions } from './checkpoint.ts'
import { daemonOptions } from './daemon-options.ts'
import type { Checked } from './measure.ts'
import { measureRow } from './row.ts'

const TENSORS = [399, 18_432] as const
const ELEMENTS = 64
const TORCH_DTYPE = 'torch.bfloat16'

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
  },
}

function smallTensors(count: number): TensorShape[] {
  return Array.from({ length: count }, (_, i) => ({
    name: `layers.${i}.weight`,
    dtype: 'BF16',
    shape: [ELEMENTS],
  }))
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
