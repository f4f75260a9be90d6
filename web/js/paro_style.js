// The look of the picture in Load PARO; colours come from ComfyUI's theme.

const CSS = `
.paro { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; box-sizing: border-box;
  padding: 4px 2px; overflow: hidden; font: 12px/1.35 Inter, Arial, sans-serif;
  color: var(--input-text, #ddd); user-select: none; container-type: inline-size; }
.paro * { box-sizing: border-box; }
.paro [hidden] { display: none !important; }
.paro button { font: inherit; color: inherit; background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; padding: 2px 7px;
  min-height: 24px; cursor: pointer; white-space: nowrap; }
.paro button:hover { filter: brightness(1.25); }
.paro button:focus-visible, .paro canvas:focus-visible { outline: 2px solid #b5de2b; outline-offset: 1px; }
.paro button[aria-pressed="true"] { background: #31688e; border-color: #b5de2b; color: #fff; }
.paro-steppers { display: flex; gap: 4px; justify-content: space-between; }
.paro-stepper { display: flex; flex: 1 1 0; align-items: center; justify-content: space-between;
  background: var(--comfy-input-bg, #222); border-radius: 4px; }
.paro-stepper span { text-align: center; white-space: nowrap; font-variant-numeric: tabular-nums; }
.paro-stepper button { border: 0; padding: 2px 4px; background: none; }
.paro-toggles { display: flex; gap: 4px; }
.paro-steppers, .paro-toggles, .paro-legend { flex-wrap: wrap; }
.paro-toggles button { flex: 1 1 auto; }
.paro-body { display: flex; flex-direction: column; gap: 6px; flex: 1 1 auto; min-height: 0; }
.paro-stage { flex: 1 1 auto; min-height: 258px; display: flex; align-items: center;
  justify-content: center; overflow: hidden; }
.paro-stage canvas { display: block; border-radius: 2px; cursor: pointer; }
.paro-side { display: flex; flex-direction: column; gap: 6px; flex: 0 0 auto; min-width: 0; }
.paro-legend { display: flex; gap: 6px; align-items: center; justify-content: center; font-size: 11px;
  opacity: 0.9; white-space: nowrap; }
.paro-legend i { display: inline-block; height: 9px; border-radius: 2px; }
.paro-recall { font-size: 13px; font-weight: 600; color: var(--fg-color, #fff); }
.paro-note, .paro-status { font-size: 11px; opacity: 0.9; overflow-wrap: anywhere; }
.paro-status { border-top: 1px solid var(--border-color, #4e4e4e); padding-top: 4px; }
.paro-status:empty { display: none; }
.paro-placeholder { flex: 1 1 auto; display: flex; align-items: center; justify-content: center;
  text-align: center; padding: 12px; border: 1px dashed var(--border-color, #4e4e4e);
  border-radius: 4px; }
@container (max-width: 290px) {
  .paro-stage { min-height: 130px; }
}
@container (min-width: 560px) {
  .paro-body { flex-direction: row; }
  .paro-side { flex: 0 0 230px; }
}
`;

/** The style sheet as an element, for the picture to carry: nothing of it lies in the page's head. */
export function style() {
  const element = document.createElement("style");
  element.textContent = CSS;
  return element;
}
