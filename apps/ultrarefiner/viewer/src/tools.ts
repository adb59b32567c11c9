// What the left mouse button does. Brush and eraser are OHIF's own segmentation tools, one for each strategy.

declare const window: any;

export type Tool = "positive" | "negative" | "box" | "lasso" | "brush" | "eraser" | "window";
export const GROUP = "default";
const BRUSHES: Record<string, string> = { brush: "UltraRefinerBrush", eraser: "UltraRefinerEraser" };

export function createTools(servicesManager: any, extensionManager: any): void {
  const { toolGroupService } = servicesManager.services;
  const { toolNames, Enums } = extensionManager.getModuleEntry("@ohif/extension-cornerstone.utilityModule.tools").exports;
  const { Primary, Auxiliary, Secondary, Wheel } = Enums.MouseBindings;
  toolGroupService.createToolGroupAndAddTools(GROUP, {
    active: [
      { toolName: toolNames.WindowLevel, bindings: [{ mouseButton: Primary }] },
      { toolName: toolNames.Pan, bindings: [{ mouseButton: Auxiliary }] },
      { toolName: toolNames.Zoom, bindings: [{ mouseButton: Secondary }] },
      { toolName: toolNames.StackScroll, bindings: [{ mouseButton: Wheel }] },
    ],
    passive: [
      { toolName: BRUSHES.brush, parentTool: "Brush", configuration: { activeStrategy: "FILL_INSIDE_CIRCLE" } },
      { toolName: BRUSHES.eraser, parentTool: "Brush", configuration: { activeStrategy: "ERASE_INSIDE_CIRCLE" } },
    ],
  });
}

// The tool that OHIF itself acts with on the left button: none of its tools where a click or a box is the mode's own.
export function choose(tool: Tool, radius: number): void {
  const { ToolGroupManager, Enums, utilities } = window.cornerstoneTools;
  const group = ToolGroupManager.getToolGroup(GROUP);
  const primary = { bindings: [{ mouseButton: Enums.MouseBindings.Primary }] };
  for (const name of ["WindowLevel", ...Object.values(BRUSHES)]) group.setToolPassive(name, { removeAllBindings: true });
  if (tool === "window") group.setToolActive("WindowLevel", primary);
  if (tool in BRUSHES) {
    utilities.segmentation.setBrushSizeForToolGroup(GROUP, radius, BRUSHES[tool]);
    group.setToolActive(BRUSHES[tool], primary);
  }
}
