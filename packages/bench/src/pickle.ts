import { pickleList, type Plan, readEngineMessage } from '@ckpt/core'
import type { Bench } from './bench.ts'
import type { Checked } from './measure.ts'
import { type Model, models, planOf } from './models.ts'
import { measureRow } from './row.ts'

/** The tensor lists of all buckets of an update. */
export const pickle: Bench = {
  name: 'pickle',
  async *rows() {
    for (const model of models()) {
      const plan = planOf(model)
      let lists = listsOf(model, plan)
      const bytes = lists.reduce((sum, list) => sum + list.length, 0)
      const name = `${model.name}, ${plan.bucketCount} lists`
      yield await measureRow(
        { bench: 'pickle', case: name, tensors: plan.tensorCount, bytes },
        {
          prepare: () => {
            lists = []
          },
          run: () => {
            lists = listsOf(model, plan)
          },
          check: () => compareLists(model, plan, lists),
        },
      )
    }
  },
}

export function listsOf({ table }: Model, plan: Plan): Uint8Array[] {
  return Array.from({ length: plan.bucketCount }, (_, g) => pickleList(plan, table, g))
}

/** Reads the lists back as the reference engine does and counts the tensors that are not in their place as they should be. */
export function compareLists({ table }: Model, plan: Plan, lists: readonly Uint8Array[]): Checked {
  const compared = plan.tensorCount
  let right = 0
  for (const [bucket, list] of lists.entries()) {
    const first = plan.bucketFirstTensor[bucket] as number
    const message = readEngineMessage(list)
    if (message.type !== 'list') continue
    for (const [k, { name, dtype, shape, offset }] of message.tensors.entries()) {
      const tensor = plan.order[first + k] as number
      const same =
        name === table.names[tensor] &&
        dtype === table.dtypes[tensor] &&
        offset === plan.tensorRing[tensor] &&
        String(shape) === String(table.shapes[tensor])
      if (same) right++
    }
  }
  return { compared, wrong: Math.abs(compared - right) }
}
