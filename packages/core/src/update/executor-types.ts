/** What has happened on this rank. */
export type ExecutorEvent =
  /** Every copy and broadcast of the bucket is complete in this rank's ring. */
  | { readonly type: 'copied'; readonly bucket: number }
  /** The engine worker of this rank has taken the bucket. */
  | { readonly type: 'acked'; readonly bucket: number }
  /** The bytes of segments `[0, segments)` are in their owners' host memory. */
  | { readonly type: 'readable'; readonly segments: number }

/** What the driver must do now, in this order. */
export type ExecutorAction =
  /**
   * Enqueue the segment's H2D copy on the copy stream and make the collective stream wait for it.
   */
  | { readonly type: 'copy'; readonly segment: number }
  /** Enqueue the segment's broadcast from `root` (a rank) on the collective stream. */
  | { readonly type: 'broadcast'; readonly segment: number; readonly root: number }
  /** Record the bucket's event behind what was enqueued. */
  | { readonly type: 'record'; readonly bucket: number }
  /** Send the bucket's tensor list to the engine worker. */
  | { readonly type: 'announce'; readonly bucket: number }
  /** Every bucket is acknowledged. */
  | { readonly type: 'finish' }
